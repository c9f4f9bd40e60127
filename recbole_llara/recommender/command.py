"""``recbole-llara candidates``: questions out of what a recommender proposes; ``recbole-llara leaks``: rules over a run's draws."""

import argparse
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_llara.utils.atomic import run_errors, write_file
from recbole_llara.utils.errors import UserError, exit_status


def candidates_main(argv: Sequence[str] | None = None) -> int:
    """Write the candidate sets of validation and test that a recommender proposes; the exit status is that of ``exit_status``."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara candidates",
        description="Write a candidate_file: for each validation and test row the target, and the items that the frozen recommender "
        "ranks first. Further arguments are the keys of a run of an LLM recommender, such as rec_model and rec_checkpoint.",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write; an existing one is replaced")
    parser.add_argument(
        "--top",
        type=int,
        help="draw from this many items, those that the recommender ranks first (default candidate_num - 1: all)",
    )
    arguments, keys = parser.parse_known_args(argv)
    return exit_status("recbole-llara", lambda: sys.stdout.write(_propose(keys, arguments.out, arguments.top)))


def _propose(keys: Sequence[str], out: Path, top: int | None) -> str:
    from recbole_llara.config.models import is_llm_recommender
    from recbole_llara.config.run_config import RunConfig
    from recbole_llara.data.dataset import prepare_data
    from recbole_llara.recommender.proposals import proposed_questions

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = RunConfig(config_dict={"model": "LLaRA", "state": "WARNING"}, argv=keys)
    if not is_llm_recommender(config["model"]):
        raise UserError(
            f"model: found {config['model']}, expected an LLM recommender, whose frozen recommender rec_model proposes"
        )
    if config["candidate_file"] is not None:
        raise UserError(f"candidate_file: found {config['candidate_file']!r}, expected none: it is what this command writes")
    top = config["candidate_num"] - 1 if top is None else top
    if top < config["candidate_num"] - 1:
        raise UserError(f"--top: found {top}, expected at least {config['candidate_num'] - 1} (candidate_num - 1)")
    asked = proposed_questions(config, prepare_data(config), top)
    with run_errors(out):
        write_file(out, lambda place: place.write_bytes(asked.content))
    lines = [f"{out}: SHA-256 {hashlib.sha256(asked.content).hexdigest()}"]
    lines += [f"proposed by {asked.recommender.model}, SHA-256 {asked.recommender.sha256}, {asked.recommender.path}"]
    lines += [
        f"{split}: {asked.rows[split]} rows; in {share:.1%} the target is among the first {top} by itself. In the others it was put there, and is "
        f"the candidate that the recommender ranks last: a rule that names this one is right in {1 - share:.1%} or more"
        for split, share in asked.proposed.items()
    ]
    return "".join(f"{line}\n" for line in lines)


def leaks_main(argv: Sequence[str] | None = None) -> int:
    """Print what rules without a model find; returns the exit status, 1 where one of them is a leak."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara leaks",
        description="Check whether rules without a model can find the targets of a run; further arguments are the run's keys.",
        epilog="--model=LLaRA --candidate_draw=recommender looks at draws from what the recommender proposes.",
    )
    parser.add_argument("--epochs", type=int, default=5, help="training epochs whose draws the rules see (default %(default)s)")
    arguments, keys = parser.parse_known_args(argv)
    found: list[int] = []

    def find() -> None:
        text, leaks = _find(keys, arguments.epochs)
        found.append(leaks)
        sys.stdout.write(text)

    return exit_status("recbole-llara", find) or int(any(found))


def _find(keys: Sequence[str], epochs: int) -> tuple[str, int]:
    from recbole_llara.config.models import is_llm_recommender
    from recbole_llara.config.run_config import RunConfig
    from recbole_llara.config.settings import UNIFORM
    from recbole_llara.data.dataset import prepare_data, training_part
    from recbole_llara.data.leaks import report
    from recbole_llara.recommender.frozen import learned_data
    from recbole_llara.recommender.proposals import with_proposals

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = RunConfig(config_dict={"model": "Popularity", "state": "WARNING"}, argv=keys)
    is_llm = is_llm_recommender(config["model"])
    if not is_llm and config["candidate_draw"] not in (None, UNIFORM):
        raise UserError(
            f"candidate_draw: found {config['candidate_draw']!r} with model {config['model']}, which draws no training candidates; expected an "
            "LLM recommender: give --model=LLaRA"
        )
    data, learned = prepare_data(config), None
    if training_part(config) is not None:
        dataset = learned_data(config, config.for_recommender(), data, of_training=True).dataset
        learned = dataset.rows_of(dataset.inter_feat)
    return report(with_proposals(config, data)[0] if is_llm else data, epochs, learned)

"""``recbole-llara leaks``: the rules of ``data.leaks`` over the draws of a run, those of a recommender's proposals too."""

import argparse
import logging
import sys
from collections.abc import Sequence

from recbole_llara.utils.errors import UserError, exit_status


def leaks_main(argv: Sequence[str] | None = None) -> int:
    """Print what rules without a model find; returns the exit status, 1 where one of them is a leak."""
    parser = argparse.ArgumentParser(
        prog="recbole-llara leaks",
        description="What rules without a model find in the draws of a run; further arguments are the run's keys.",
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
    from recbole_llara.data.dataset import prepare_data
    from recbole_llara.data.leaks import report
    from recbole_llara.recommender.proposals import with_proposals

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = RunConfig(config_dict={"model": "Popularity", "state": "WARNING"}, argv=keys)
    is_llm = is_llm_recommender(config["model"])
    if not is_llm and config["candidate_draw"] not in (None, UNIFORM):
        raise UserError(
            f"candidate_draw: found {config['candidate_draw']!r} with model {config['model']}, which draws no training candidates; expected an "
            "LLM recommender: give --model=LLaRA"
        )
    data = prepare_data(config)
    return report(with_proposals(config, data)[0] if is_llm else data, epochs)

"""Several systems on the same rows and candidates, in one table: ``python -m recbole_llara.study NAME [--key=value ...]``.

A study is a file of ``properties/study``, or a YAML file of the user's own. A second call with the same settings takes
finished systems from ``saved/studies`` and trains nothing again.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llara import __version__
from recbole_llara.errors import UserError, exit_status, nearest
from recbole_llara.evaluator.report import comparison_table, paired_test_lines
from recbole_llara.evaluator.run_folder import read_cases
from recbole_llara.properties_path import PROPERTIES
from recbole_llara.tiny_llama import TINY_LLAMA_DIR
from recbole_llara.yaml_files import parse_arguments, read_yaml

STUDIES = PROPERTIES / "study"
PATHS = ("run_dir", "result_file", "cases_file", "checkpoint")
LOCAL = "local"  # api_base of a chat model that the study serves itself


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        settings: keys of all systems; a stock model takes those it shares with an LLM, and the ``rec_`` keys.
        systems: name in the table -> the system's own keys over all others, ``model`` among them.
        compare: pairs of names that are tested against each other.
    """

    settings: dict[str, Any]
    systems: dict[str, dict[str, Any]]
    compare: tuple[tuple[str, str], ...]

    def with_settings(self, keys: Mapping[str, Any]) -> "Study":
        """The same systems under other settings."""
        return Study({**self.settings, **keys}, self.systems, self.compare)

    @property
    def recommenders(self) -> frozenset[str]:
        """The stock models whose item embeddings a system of this study reads."""
        from recbole_llara.model import is_ours

        read = {keys.get("rec_model", self.settings.get("rec_model", "SASRec")) for keys in self.systems.values()}
        return frozenset(read) if any(is_ours(keys["model"]) for keys in self.systems.values()) else frozenset()


@dataclass(frozen=True)
class Entry:
    """A finished system.

    Args:
        result: the content of its ``result.json``.
        paths: of what it wrote.
    """

    result: dict[str, Any]
    paths: dict[str, str]

    def cases(self) -> list[dict[str, Any]]:
        """The records of its ``cases.jsonl``."""
        return read_cases(self.paths["cases_file"])


def load_study(name: str) -> Study:
    """Read a study.

    Args:
        name: of a file in ``properties/study``, or a path that ends in ``.yaml``.

    Raises:
        UserError: no such study, or a file that is none.
    """
    path = Path(name) if name.endswith(".yaml") else STUDIES / f"{name}.yaml"
    known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
    if not path.is_file():
        raise UserError(f"study: found {name!r}, expected one of {', '.join(known)} or a YAML file; {nearest(name, known)}")
    content = read_yaml(path)
    systems = content.get("systems")
    if not isinstance(systems, dict) or not all(isinstance(keys, dict) and "model" in keys for keys in systems.values()):
        raise UserError(f"{path}: expected systems, a name with its keys for each, model among them")
    compare = tuple(tuple(pair) for pair in content.get("compare") or ())
    foreign = [name for pair in compare for name in pair if name not in systems]
    if foreign or any(len(pair) != 2 for pair in compare):
        raise UserError(f"{path}: compare holds {[list(pair) for pair in compare]}, expected pairs of {', '.join(systems)}")
    return Study({"checkpoint_dir": "saved", "dataset": "ml-100k", **(content.get("settings") or {})}, systems, compare)


def run_study(study: Study, fresh: bool = False) -> dict[str, Entry]:
    """Every system of a study, by its name in the table.

    Args:
        study: what is compared.
        fresh: run all of them, even those that an earlier call finished.
    """
    return {name: run_system(study, name, fresh) for name in study.systems}


def run_system(study: Study, name: str, fresh: bool = False) -> Entry:
    """One system, from an earlier call or by running it now.

    Args:
        study: what it belongs to.
        name: in the table.
        fresh: run it even if an earlier call did.
    """
    from recbole_llara.quick_start import run_recbole_llara

    own = dict(study.systems[name])
    model = own.pop("model")
    values = {**_settings_for(model, study.settings), **own}
    served_llm = str(study.settings.get("llm_path", "tiny")) if values.get("api_base") == LOCAL else None
    digest = _fingerprint({"model": model, "values": values, "served_llm": served_llm})
    kept = Path(str(study.settings["checkpoint_dir"])) / "studies" / f"{model}-{digest}.json"
    if kept.is_file() and not fresh:
        entry = Entry(**json.loads(kept.read_text(encoding="utf-8")))
        if Path(entry.paths["cases_file"]).is_file():
            sys.stdout.write(f"{name}: taken from {entry.paths['run_dir']}\n")
            return entry
    with ExitStack() as stack:
        if served_llm is not None:
            from recbole_llara.model.chat_server import served

            server = stack.enter_context(served(served_llm))
            values |= {"api_base": server.api_base, "api_model": server.model, "api_key_env": ""}
        if model in study.recommenders:
            values |= {"checkpoint": _recommender_checkpoint(model, study.settings)}
        written = run_recbole_llara(model=model, config_dict=values)
    paths = {key: written[key] for key in PATHS}
    entry = Entry(json.loads(Path(paths["result_file"]).read_text(encoding="utf-8")), paths)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(vars(entry), indent=2), encoding="utf-8")
    return entry


def _settings_for(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a study's settings, what a model takes: an LLM all of them, another what it shares with an LLM.

    A model that learns as a recommender does takes the ``rec_`` keys besides, without their prefix.
    """
    from recbole_llara.keys import REC_PREFIX, recommender_keys, shared_keys
    from recbole_llara.model import is_ours, replaces_item_table, stock_models

    if is_ours(model):
        return dict(settings)
    values = {key: value for key, value in settings.items() if key in shared_keys() | {"dataset", "max_eval_rows"}}
    if model in stock_models() or replaces_item_table(model):
        prefixed = {key.removeprefix(REC_PREFIX): value for key, value in settings.items() if key.startswith(REC_PREFIX)}
        values |= {key: value for key, value in prefixed.items() if key in recommender_keys(model) - {"max_eval_rows"}}
    return values


def _recommender_checkpoint(model: str, settings: Mapping[str, Any]) -> str:
    """The very recommender whose embeddings the LLM systems read, trained on all rows to its early stop."""
    from recbole_llara.config import LLaRAConfig
    from recbole_llara.data.dataset import prepare_data
    from recbole_llara.model.item_encoder import WEIGHTS, prepare_recommender

    config = LLaRAConfig("LLaRA", config_dict={**settings, "rec_model": model})
    return str(prepare_recommender(config, prepare_data(config)).path / WEIGHTS)


def _fingerprint(system: Mapping[str, Any]) -> str:
    """Digest of all that a finished system's result depends on, but for the code.

    Args:
        system: its model, keys and the like.
    """
    weights = TINY_LLAMA_DIR / "model.safetensors"
    llm = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    yaml = {
        path.relative_to(PROPERTIES).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(PROPERTIES.rglob("*.yaml"))
        if path.parent != STUDIES
    }
    facts = {**system, "version": __version__, "llm": llm, "properties": yaml}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def report(study: Study, entries: Mapping[str, Entry]) -> str:
    """The table, the paired tests, and where each row of each system is told.

    Args:
        study: whose ``compare`` says what is tested.
        entries: by the systems' names.
    """
    lines = ["", comparison_table([entry.result for entry in entries.values()], list(entries)), ""]
    for one, other in study.compare:
        lines += [f"{one} against {other} on the same rows and candidates:"]
        lines += [*paired_test_lines(entries[one].cases(), entries[other].cases(), one, other), ""]
    lines += ["Each row of the test, with what was shown and answered:"]
    lines += [f"  {name}: {entry.paths['cases_file']}" for name, entry in entries.items()]
    return "\n".join(lines) + "\n"


def study_report(arguments: Sequence[str]) -> str:
    """Run a study and return its report.

    Args:
        arguments: the study's name, ``--key=value`` over its settings, and ``--fresh`` to run all systems again.

    Raises:
        UserError: an argument cannot be used.
    """
    names = [argument for argument in arguments if not argument.startswith("-")]
    if len(names) != 1:
        known = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml")))
        raise UserError(f"found {len(names)} studies ({', '.join(names)}), expected one of {known} or a YAML file")
    words = [argument for argument in arguments if argument not in (names[0], "--fresh")]
    study = load_study(names[0]).with_settings(parse_arguments(words))
    return report(study, run_study(study, fresh="--fresh" in arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    kept = "interrupted; finished systems and recommenders are kept, run it again to go on"
    return exit_status("study", lambda: sys.stdout.write(study_report(arguments)), kept)


if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main())

"""What a study compares: a file of ``properties/study``, or a YAML file of the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from recbole_llara.config.secrets import redacted
from recbole_llara.config.settings import COLD_ITEMS
from recbole_llara.config.validation import check_name
from recbole_llara.config.yaml_files import parse_arguments, property_files, read_yaml
from recbole_llara.utils.errors import UserError, nearest

FIGURES = ("bars", "validity", "curves", "reliability", "radar", "cases")
STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
EVALUATES = "evaluates"  # in a system's keys: the system whose checkpoint it evaluates, trained no further
FUSES = "fuses"  # a system's only key: the systems whose log-probabilities it adds, weighted on the validation rows


@dataclass(frozen=True, config=STRICT)
class Published:
    """A column of a paper; each column of a study has its own ``name``."""

    source: str  # the table, as a reader finds it
    protocol: str  # of its rows
    llm: str  # what its LLM systems were built on
    hit: dict[str, dict[str, float]]  # dataset -> system -> HitRatio@1
    valid: dict[str, dict[str, float]] = field(default_factory=dict)  # dataset -> system -> ValidRatio, where it has one
    llms: dict[str, str] = field(default_factory=dict)  # system -> what it was built on, where that is another LLM
    decoding: str = "generate"  # of its LLM systems, in the words of the key ``decoding``
    name: str = "published"


@dataclass(frozen=True, config=STRICT)
class CasePattern:
    """Rows worth showing: all of ``right`` answer them correctly, none of ``wrong`` does."""

    title: str
    right: list[str]
    wrong: list[str]


@dataclass(frozen=True, config=STRICT)
class Study:
    """What is compared."""

    name: str  # of its folder under ``checkpoint_dir/studies``
    title: str
    settings: dict[str, Any]  # keys of all systems; a stock model takes those it shares with an LLM, and the ``rec_`` keys
    # Name in the table -> the system's own keys over all others, such as a ``seed``: ``model``, or ``evaluates`` with the name of a
    # system above it, whose checkpoint is evaluated under these keys; or ``fuses`` alone, with the names of systems above it.
    systems: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    compare: tuple[tuple[str, str], ...] = ()  # pairs of systems that are tested against each other
    baselines: tuple[str, ...] = ()  # the best of them on the validation rows is tested against every other system
    figures: tuple[str, ...] = ("bars",)  # of ``FIGURES``
    published: tuple[Published, ...] = ()
    cases: tuple[CasePattern, ...] = ()  # which rows the figure ``cases`` shows
    radars: dict[str, list[str]] = field(default_factory=dict)  # title -> the systems of a figure ``radar``
    notes: tuple[str, ...] = ()  # what its numbers can and cannot say: the report's last lines
    datasets: tuple[str, ...] = ("ml-100k",)
    seeds: tuple[int, ...] = (2020,)  # of training
    candidate_seeds: tuple[int, ...] = ()  # further candidate draws, on which the first seed's checkpoints are evaluated

    def with_arguments(self, keys: Mapping[str, Any]) -> "Study":
        """The same systems with ``dataset``, ``seeds`` or ``candidate_seeds`` changed, and any key of the settings."""
        keys = dict(keys)
        changes: dict[str, Any] = {}
        if "dataset" in keys:
            changes["datasets"] = tuple(str(name) for name in _list(keys.pop("dataset")))
        for key in ("seeds", "candidate_seeds", "seed"):
            if key in keys:
                changes["seeds" if key == "seed" else key] = _whole_numbers(key, keys.pop(key))
        changed = replace(self, settings={**self.settings, **keys}, **changes)
        if changed.candidate_seeds and changed.settings.get("protocol") == COLD_ITEMS:
            raise UserError(
                f"candidate_seeds: found {list(changed.candidate_seeds)} with protocol {COLD_ITEMS}, where a candidate_seed draws the held-out "
                "items too: under another one the checkpoints have learned from what they are asked; expected none, or a study for each "
                "candidate_seed"
            )
        return changed

    def model_of(self, name: str) -> str:
        """The model of a system; of one that adds others their names."""
        keys = self.systems[name]
        if FUSES in keys:
            return " + ".join(keys[FUSES])
        return self.model_of(keys[EVALUATES]) if EVALUATES in keys else str(keys["model"])

    def keys_of(self, name: str) -> dict[str, Any]:
        """A system's own keys over those of the system that it evaluates, without ``model`` and ``evaluates``; none of a sum."""
        keys = self.systems[name]
        if FUSES in keys:
            return {}
        inherited = self.keys_of(keys[EVALUATES]) if EVALUATES in keys else {}
        return {**inherited, **{key: value for key, value in keys.items() if key not in ("model", EVALUATES)}}

    def fused_in(self, name: str) -> tuple[str, ...]:
        """The systems that a system adds; none where it answers by a model."""
        return tuple(self.systems[name].get(FUSES, ()))

    @property
    def candidate_seed(self) -> int:
        """The seed of the candidates that every system answers."""
        own = self.settings.get("candidate_seed")
        return self.seeds[0] if own is None else int(own)

    @property
    def folder(self) -> Path:
        """Where its tables and figures go."""
        parts = [self.name, *self.datasets, str(self.settings.get("protocol", ""))]
        return Path(str(self.settings["checkpoint_dir"])) / "studies" / "-".join(part for part in parts if part)


def read_command(arguments: Sequence[str], defaults: Mapping[str, Any] | None = None) -> Study:
    """The study that a command line asks for: its name, and ``--key=value`` over its settings, which are over defaults."""
    names = [argument for argument in arguments if not argument.startswith("-")]
    if len(names) != 1:
        known = ", ".join(property_files("study"))
        raise UserError(f"found {len(names)} studies ({', '.join(names)}), expected one of {known} or a YAML file")
    study = load_study(names[0], defaults)
    return study.with_arguments(parse_arguments([argument for argument in arguments if argument != names[0]]))


def load_study(name: str, defaults: Mapping[str, Any] | None = None) -> Study:
    """Read a study.

    Args:
        name: of a file in ``properties/study``, or a path that ends in ``.yaml``.
        defaults: keys under its settings.
    """
    known = property_files("study")
    path = Path(name) if name.endswith(".yaml") else known.get(name, Path())
    if not path.is_file():
        raise UserError(f"study: found {name!r}, expected one of {', '.join(known)} or a YAML file; {nearest(name, known)}")
    content = {key: value for key, value in read_yaml(path).items() if value is not None}
    for key in content:
        check_name(f"{path}: key", key, sorted({entry.name for entry in fields(Study)} - {"name", "datasets"} | {"dataset"}))
    settings = {"checkpoint_dir": "saved", **(defaults or {}), **content.get("settings", {})}
    arguments = {key: settings.pop(key) for key in ("dataset", "seed") if key in settings}
    arguments |= {key: content.pop(key) for key in ("dataset", "seeds", "candidate_seeds") if key in content}
    try:
        study = Study(**{"title": path.stem, **content, "name": path.stem, "settings": settings})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}, found {redacted(first['input'])}"
        ) from None
    _check_names(path, study)
    return study.with_arguments(arguments)


def _check_names(path: Path, study: Study) -> None:
    for number, (name, keys) in enumerate(study.systems.items()):
        above = [other for other in list(study.systems)[:number] if FUSES not in study.systems[other]]
        if FUSES in keys:
            _check_fused(path, name, keys, above)
            continue
        if ("model" in keys) == (EVALUATES in keys):
            raise UserError(
                f"{path}: system {name!r} has {redacted(keys)}, expected the key model among them, or {EVALUATES}, or {FUSES} alone"
            )
        if EVALUATES in keys and keys[EVALUATES] not in above:
            raise UserError(
                f"{path}: system {name!r} evaluates {keys[EVALUATES]!r}, expected a system above it that has a model"
            )
    named = [("compare", names) for names in study.compare] + [("baselines", study.baselines)]
    named += [("cases", pattern.right + pattern.wrong) for pattern in study.cases]
    named += [("radars", names) for names in study.radars.values()]
    for key, name in ((key, name) for key, names in named for name in names):
        check_name(f"{path}: {key}", name, study.systems)
    for figure in study.figures:
        check_name(f"{path}: figures", figure, FIGURES)
    columns = [column.name for column in study.published]
    if len(set(columns)) < len(columns):
        raise UserError(f"{path}: published has columns named {', '.join(columns)}, expected a different name for each")


def _check_fused(path: Path, name: str, keys: Mapping[str, Any], above: Sequence[str]) -> None:
    fused = keys[FUSES]
    if len(keys) > 1:
        raise UserError(f"{path}: system {name!r} has {redacted(keys)}, expected {FUSES} alone: nothing else is run")
    if not isinstance(fused, list) or len(fused) < 2 or len({str(one) for one in fused}) < len(fused):
        raise UserError(f"{path}: system {name!r} fuses {redacted(fused)}, expected a list of at least two different systems")
    for one in fused:
        if one not in above:
            raise UserError(f"{path}: system {name!r} fuses {one!r}, expected systems above it that have a model")


def _list(value: Any) -> list[Any]:
    """The values of ``[a, b]``, ``a,b`` or ``a``."""
    return list(value) if isinstance(value, (list, tuple)) else [part.strip() for part in str(value).split(",")]


def _whole_numbers(key: str, value: Any) -> tuple[int, ...]:
    parts = _list(value)
    if not all(str(part).isdigit() for part in parts) or len({str(part) for part in parts}) < len(parts):
        raise UserError(f"{key}: found {value!r}, expected different whole numbers such as --{key}=2020,2021,2022")
    if key != "candidate_seeds" and not parts:
        raise UserError(f"{key}: found none, expected at least one")
    return tuple(int(part) for part in parts)

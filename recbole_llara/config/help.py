"""What a key is: its type and range from its declaration; default, meaning and source from the comments of the YAML files.

A comment reads ``# (type, unit) meaning; source`` and may go on in the lines below. ``python -m recbole_llara.config.help`` prints
``docs/pages/keys.md``.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recbole_llara.config.keys import DECLARED, REC_PREFIX, RECBOLE_PROPERTIES, known_keys, recommender_keys
from recbole_llara.config.models import MODELS, is_llm_recommender, stock_models
from recbole_llara.config.recbole_keys import RECBOLES
from recbole_llara.config.settings import OURS
from recbole_llara.config.validation import FromRun, annotation, range_text, type_text
from recbole_llara.config.yaml_files import PROPERTIES, read_yaml
from recbole_llara.utils.errors import UserError, nearest

_LINE = re.compile(r"(?P<key>\w+):.*?\s#\s*(?P<comment>.*)")
_MORE = re.compile(r"\s+#\s*(?P<comment>.*)")
_COMMENT = re.compile(r"(?:\([^,)]*(?:,(?P<unit>[^)]*))?\))?\s*(?P<meaning>.*)")
_SOURCE = re.compile(r"(?:LLaRA|RSLLM|TALLRec|RecBole's own|both papers|the paper)\b.*")
LLMS, STOCK = "LLM recommenders", "RecBole's models and baselines"
# File -> who takes its keys, those of models beside.
_FILES = {"overall": "every model", "recommender": STOCK, "llm_recommender": LLMS, "llm/tiny": "llm_path tiny"}


@dataclass(frozen=True)
class Note:
    """What one file says of a key.

    Args:
        whose: who takes the value, such as ``RSLLM``.
        value: the default.
        unit: of a number, such as ``rows``; "" = none.
        meaning: what the key does; "" where only another file says it.
        source: where the value comes from, such as ``LLaRA sec. 5.1.2``; "" where nobody says.
    """

    whose: str
    value: Any
    unit: str
    meaning: str
    source: str


def describe_key(key: str) -> str:
    """The text of ``--help KEY``.

    Args:
        key: ours or RecBole's; with the prefix ``rec_`` one of the frozen recommender's own.

    Raises:
        UserError: there is no such key; the message names the nearest.
    """
    notes = _notes()
    inner = key.removeprefix(REC_PREFIX)
    if (
        key not in notes
        and key not in DECLARED
        and key != inner
        and any(inner in recommender_keys(name) for name in stock_models())
    ):
        return f"{key}: {inner} of the frozen recommender\n\n{describe_key(inner)}"
    if key not in notes and key not in DECLARED:
        known = {*notes, *DECLARED, *known_keys("LLaRA", "SASRec")}
        raise UserError(f"--help: found {key!r}, expected a key; {nearest(key, known)}")
    said = notes.get(key, ())
    lines = [f"{key} ({_type(key)})"]
    lines += [f"  {meaning}" for meaning in [note.meaning for note in said if note.meaning][:1]]
    if said:
        lines.append(f"  default: {_defaults(said)}")
    if sources := list(dict.fromkeys(note.source for note in said if note.source)):
        lines.append(f"  source: {'; '.join(sources)}")
    lines.append(f"  models: {', '.join(_takers(key)) or 'every model'}")
    if key in DECLARED and DECLARED[key].from_run is not FromRun.VALUE:
        lines.append(f"  a run's folder: {DECLARED[key].from_run.value}")
    return "\n".join(lines)


def keys_page() -> str:
    """``docs/pages/keys.md``: a table of the keys of our files, those of each file that no earlier one has."""
    lines = [
        "# Keys",
        "",
        "Every key that our YAML files name, with its defaults; RecBole's own keys are known too. `recbole-llara --help KEY` tells one.",
    ]
    seen: set[str] = set()
    for whose in (*_FILES.values(), *MODELS, "every protocol"):
        keys = [key for key, said in _notes().items() if key not in seen and any(_heading(note) == whose for note in said)]
        seen.update(keys)
        if keys:
            lines += [
                "",
                f"## {whose[0].upper()}{whose[1:]}",
                "",
                "| key | type | default | meaning | source |",
                "|---|---|---|---|---|",
            ]
        for key in keys:
            said = [note for note in _notes()[key] if not note.whose.startswith(("dataset", "RecBole's default"))]
            meaning = next((note.meaning for note in said if note.meaning), "")
            sources = "; ".join(dict.fromkeys(note.source for note in said if note.source))
            cells = (f"`{key}`", _type(key), _defaults(said), meaning, sources)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _heading(note: Note) -> str:
    return "every protocol" if note.whose.startswith("protocol ") else note.whose


def _type(key: str) -> str:
    """Type, range or names, and unit, such as ``int in [1, inf), rows``."""
    unit = next((f", {note.unit}" for note in _notes().get(key, ()) if note.unit), "")
    for settings in (*OURS, *RECBOLES):
        if key in settings.model_fields:
            kind, names = annotation(settings, key), DECLARED[key].names
            if names is not None:
                return f"{type_text(kind)}: {', '.join(names())}"
            return type_text(kind) + (f" in {range_text(kind)}" if range_text(kind) else "") + unit
    return type(_notes()[key][0].value).__name__


def _defaults(said: tuple[Note, ...] | list[Note]) -> str:
    """The default of the first file, and those of others where they differ."""
    first, *others = said
    shown = [
        _shown(first.value) + ("" if first.whose in ("every model", "RecBole's default") or not others else f" ({first.whose})")
    ]
    shown += [f"{_shown(note.value)} ({note.whose})" for note in others if note.value != first.value]
    return "; ".join(shown)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value) if value != "" else '""'


def _takers(key: str) -> list[str]:
    """Which models take a key; none = every model."""
    whose = list(dict.fromkeys(note.whose for note in _notes().get(key, ())))
    if not whose or {"every model", "RecBole's default"} & set(whose) or any(name.startswith("protocol ") for name in whose):
        return []
    models = [name for name in whose if name in (LLMS, STOCK) or name in (*MODELS, *stock_models())]
    return [name for name in models if not is_llm_recommender(name) or LLMS not in models]


@cache
def _notes() -> dict[str, tuple[Note, ...]]:
    """Key -> what each file says of it, ours before RecBole's."""
    files = [(PROPERTIES / f"{name}.yaml", whose) for name, whose in _FILES.items()]
    files += [(path, path.stem) for path in sorted((PROPERTIES / "model").glob("*.yaml"))]
    files += [
        (path, f"{path.stem.removeprefix('tiny-')} with llm_path tiny")
        for path in sorted((PROPERTIES / "llm").glob("tiny-*.yaml"))
    ]
    for folder in ("protocol", "dataset"):
        files += [(path, f"{folder} {path.stem}") for path in sorted((PROPERTIES / folder).glob("*.yaml"))]
    files += [(RECBOLE_PROPERTIES / f"{name}.yaml", "RecBole's default") for name in ("overall", "dataset/sample")]
    files += [(RECBOLE_PROPERTIES / "model" / f"{name}.yaml", name) for name in stock_models()]
    notes: dict[str, list[Note]] = {}
    for path, whose in files:
        if path.is_file():
            comments = dict(_comments(path))
            for key, value in read_yaml(path).items():
                notes.setdefault(key, []).append(Note(whose, value, *_parts(comments.get(key, ""))))
    return {key: tuple(said) for key, said in notes.items()}


def _comments(path: Path) -> Iterator[tuple[str, str]]:
    key, words = "", []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if key and (more := _MORE.fullmatch(line)):
            words.append(more["comment"])
            continue
        if key:
            yield key, " ".join(words)
        found = _LINE.fullmatch(line)
        key, words = (found["key"], [found["comment"]]) if found else ("", [])


def _parts(comment: str) -> tuple[str, str, str]:
    """Unit, meaning and source of a comment."""
    found = _COMMENT.fullmatch(comment)
    unit, meaning = (found["unit"] or "").strip(), found["meaning"].strip()  # type: ignore[index]
    before, _, last = meaning.rpartition("; ")
    return (unit, before, last.rstrip(".")) if _SOURCE.fullmatch(last) else (unit, meaning, "")


if __name__ == "__main__":
    sys.stdout.write(keys_page())

"""What a key is: its type and range from its declaration; default, meaning and source from the comments of the YAML files.

A comment reads ``# (type, unit) meaning; source`` and may go on in the lines below. ``python -m recbole_llara.config.help`` prints
``docs/pages/keys.md``.
"""

import re
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from recbole_llara.config.keys import DECLARED, REC_PREFIX, RECBOLE_PROPERTIES, known_keys, recommender_keys
from recbole_llara.config.models import MODELS, is_llm_recommender, stock_models
from recbole_llara.config.recbole_keys import RECBOLES
from recbole_llara.config.settings import OURS
from recbole_llara.config.validation import FromRun, annotation, range_text, type_text
from recbole_llara.config.yaml_files import PROPERTIES, property_files, read_yaml
from recbole_llara.utils.errors import UserError, nearest

_ENTRY = re.compile(r"^(?P<key>\w+):.*?\s#(?P<comment>.*(?:\n[ \t]+#.*)*)", re.MULTILINE)
_COMMENT = re.compile(r"\s*(?:\([^,)]*(?:,(?P<unit>[^)]*))?\))?\s*(?P<meaning>.*)")
_SOURCE = re.compile(r"(?:LLaRA|RSLLM|TALLRec|RecBole's own|both papers|the paper)\b.*")
LLMS, STOCK = "LLM recommenders", "RecBole's models and baselines"
EVERY, RECBOLE = "every model", "RecBole's default"
# File -> who takes its keys, those of models beside.
_FILES = {"overall": EVERY, "recommender": STOCK, "llm_recommender": LLMS, "llm/tiny": "llm_path tiny"}


class Note(NamedTuple):
    """What one file says of a key."""

    whose: str  # who takes the value, such as ``RSLLM``
    value: Any  # the default
    unit: str  # of a number, such as ``rows``; "" = none
    meaning: str  # what the key does; "" where only another file says it
    source: str  # where the value comes from, such as ``LLaRA sec. 5.1.2``; "" where nobody says


def describe_key(key: str) -> str:
    """The text of ``--help KEY``, of a key of ours or RecBole's, or with the prefix ``rec_`` of the frozen recommender's own.

    Raises:
        UserError: there is no such key; the message names the nearest.
    """
    said, inner = _notes().get(key, []), key.removeprefix(REC_PREFIX)
    if not said and key not in DECLARED:
        if key != inner and any(inner in recommender_keys(name) for name in stock_models()):
            return f"{key}: {inner} of the frozen recommender\n\n{describe_key(inner)}"
        known = {*_notes(), *DECLARED, *known_keys("LLaRA", "SASRec")}
        raise UserError(f"--help: found {key!r}, expected a key; {nearest(key, known)}")
    meaning, sources = _meaning_and_sources(said)
    folder = DECLARED[key].from_run if key in DECLARED else FromRun.VALUE
    facts = {
        "default": _defaults(said) if said else "",
        "source": sources,
        "models": ", ".join(_takers(said)) or EVERY,
        "a run's folder": "" if folder is FromRun.VALUE else folder.value,
    }
    lines = [f"{key} ({_type(key, said)})", *([f"  {meaning}"] if meaning else [])]
    return "\n".join(lines + [f"  {name}: {fact}" for name, fact in facts.items() if fact])


def keys_page() -> str:
    """``docs/pages/keys.md``: a table of the keys of our files, those of each file that no earlier one has."""
    lines = [
        "# Keys",
        "",
        "Every key that our YAML files name, with its defaults; RecBole's own keys are known too. `recbole-llara --help KEY` tells one.",
    ]
    left = dict(_notes())
    for whose in (*_FILES.values(), *MODELS, "every protocol"):
        keys = [key for key, said in left.items() if any(_heading(note) == whose for note in said)]
        if keys:
            lines += ["", f"## {whose[0].upper()}{whose[1:]}", ""]
            lines += ["| key | type | default | meaning | source |", "|---|---|---|---|---|"]
        for key in keys:
            everywhere = left.pop(key)
            said = [note for note in everywhere if not note.whose.startswith(("dataset", RECBOLE))]
            cells = (f"`{key}`", _type(key, everywhere), _defaults(said), *_meaning_and_sources(said))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _heading(note: Note) -> str:
    return "every protocol" if note.whose.startswith("protocol ") else note.whose


def _meaning_and_sources(said: Iterable[Note]) -> tuple[str, str]:
    meaning = next((note.meaning for note in said if note.meaning), "")
    return meaning, "; ".join(dict.fromkeys(note.source for note in said if note.source))


def _type(key: str, said: list[Note]) -> str:
    """Type, range or names, and unit, such as ``int in [1, inf), rows``."""
    for settings in (*OURS, *RECBOLES):
        if key in settings.model_fields:
            kind, names = annotation(settings, key), DECLARED[key].names
            if names is not None:
                return f"{type_text(kind)}: {', '.join(names())}"
            unit = next((f", {note.unit}" for note in said if note.unit), "")
            return type_text(kind) + (f" in {range_text(kind)}" if range_text(kind) else "") + unit
    return type(said[0].value).__name__


def _defaults(said: list[Note]) -> str:
    """The default of the first file, and those of others where they differ."""
    first, *others = said
    shown = [_shown(first.value) + (f" ({first.whose})" if others and first.whose not in (EVERY, RECBOLE) else "")]
    shown += [f"{_shown(note.value)} ({note.whose})" for note in others if note.value != first.value]
    return "; ".join(shown)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value) if value != "" else '""'


def _takers(said: list[Note]) -> list[str]:
    """Which models take a key; none = every model."""
    whose = dict.fromkeys(_heading(note) for note in said)
    if {EVERY, RECBOLE, "every protocol"} & whose.keys():
        return []
    models = [name for name in whose if name in (LLMS, STOCK, *MODELS, *stock_models())]
    return [name for name in models if not is_llm_recommender(name) or LLMS not in models]


@cache
def _notes() -> dict[str, list[Note]]:
    """Key -> what each file says of it, ours before RecBole's."""
    files = {PROPERTIES / f"{name}.yaml": whose for name, whose in _FILES.items()}
    tiny = {path: name for name, path in property_files("llm").items() if name != "tiny"}
    files |= {path: name for name, path in property_files("model").items()}
    files |= {path: f"{name.removeprefix('tiny-')} with llm_path tiny" for path, name in tiny.items()}
    for folder in ("protocol", "dataset"):
        files |= {path: f"{folder} {name}" for name, path in property_files(folder).items()}
    files |= {RECBOLE_PROPERTIES / f"{name}.yaml": RECBOLE for name in ("overall", "dataset/sample")}
    files |= {RECBOLE_PROPERTIES / "model" / f"{name}.yaml": name for name in stock_models()}
    notes: dict[str, list[Note]] = {}
    for path, whose in files.items():
        if path.is_file():
            comments = {found["key"]: found["comment"] for found in _ENTRY.finditer(path.read_text(encoding="utf-8"))}
            for key, value in read_yaml(path).items():
                notes.setdefault(key, []).append(Note(whose, value, *_parts(comments.get(key, ""))))
    return notes


def _parts(comment: str) -> tuple[str, str, str]:
    """Unit, meaning and source of a comment."""
    found = _COMMENT.fullmatch(re.sub(r"\n[ \t]+#\s*", " ", comment))
    unit, meaning = (found["unit"] or "").strip(), found["meaning"].strip()  # type: ignore[index]
    before, _, last = meaning.rpartition("; ")
    return (unit, before, last.rstrip(".")) if _SOURCE.fullmatch(last) else (unit, meaning, "")


if __name__ == "__main__":
    sys.stdout.write(keys_page())

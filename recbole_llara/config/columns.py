"""What the files of a dataset say of its columns, where no properties and no caller do."""

from collections.abc import Sequence
from pathlib import Path

_LONGEST_HEADER = 1 << 16  # (bytes)


def read_header(path: Path, separator: str, encoding: str) -> list[str]:
    """The names in an atomic file's first line, without their types; none where there is no such file."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        line = file.readline(_LONGEST_HEADER).decode(encoding, errors="replace")
    return [name.partition(":")[0] for name in line.lstrip("\ufeff").rstrip("\r\n").split(separator)]


def title_column(columns: Sequence[str]) -> str | None:
    """The one column whose name says that it holds titles; None where there is none, or more than one."""
    titled = [name for name in columns if "title" in name.lower()]
    found = titled or [name for name in columns if name.lower() in ("name", "item_name")]
    return found[0] if len(found) == 1 else None

"""Where the YAML defaults lie: inside an installed package, or beside it in a checkout."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
PROPERTIES = _HERE / "properties" if (_HERE / "properties").is_dir() else _HERE.parent / "properties"

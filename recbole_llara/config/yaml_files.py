"""Values from YAML files and from the command line, read safely and in one way; and where the YAML defaults lie.

Nothing is evaluated. RecBole runs ``eval`` on strings; here ``1e-3`` is a float because the reader
knows RecBole's float pattern, and every other text is what YAML 1.1 makes of it, without its dates
and base-60 numbers. ``None`` is null as well as ``~``, since RecBole's users write it.
"""

import re
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recbole_llara.config.secrets import MASK, is_secret, redacted
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.process_setup import is_text

# Beside the code in an installed package, beside the package in a checkout.
_PACKAGE = Path(__file__).resolve().parent.parent
PROPERTIES = _PACKAGE / "properties" if (_PACKAGE / "properties").is_dir() else _PACKAGE.parent / "properties"
_ARGUMENT = re.compile(r"--([^=\s]+)=(.*)", re.DOTALL)


class ValueLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """A safe YAML loader with RecBole's floats that refuses a key written twice; libyaml's, where PyYAML has it, reads faster."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As PyYAML's, which keeps the last of two values.

        Raises:
            yaml.constructor.ConstructorError: a key stands twice.
        """
        seen: set[Hashable] = set()
        for key_node in (key_node for key_node, _ in node.value if key_node.tag != "tag:yaml.org,2002:merge"):
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|None|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    ValueLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


class PlainText(str):
    """A text that is a value already, and not to be parsed."""


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that were parsed once, to be given on: a quoted "1" must not become a number now."""
    return {key: PlainText(value) if isinstance(value, str) else value for key, value in values.items()}


def parse_value(text: str) -> Any:
    """Read a value from the command line or from a string of a config dict.

    Returns:
        The YAML value; the text itself where it is a ``PlainText``, empty or no YAML (RecBole's intervals: ``[5,inf)``).
    """
    if isinstance(text, PlainText) or not text.strip():
        return str(text)
    try:
        return yaml.load(text, Loader=ValueLoader)
    except (yaml.YAMLError, ValueError):  # a number of more digits than Python reads is a ValueError
        return text


def parse_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """Read ``--key=value`` arguments, cut at the first ``=``.

    Raises:
        UserError: an argument has another form, or a key is given twice with different values.
    """
    texts: dict[str, str] = {}
    for argument in argv:
        match = _ARGUMENT.fullmatch(argument)
        if match is None:
            raise UserError(f"command line: found {redacted(argument)}, expected --key=value")
        key, text = match.groups()
        if not is_text(text):
            raise UserError(
                f"command line: found bytes in --{key} that are no text in this locale ({sys.getfilesystemencoding()}), expected text; "
                "set PYTHONUTF8=1, or LC_ALL to a locale of UTF-8"
            )
        if texts.setdefault(key, text) != text:
            first, second = (MASK, MASK) if is_secret(key) else (redacted(texts[key]), redacted(text))
            raise UserError(f"command line: --{key} is given twice, as {first} and as {second}")
    return {key: parse_value(text) for key, text in texts.items()}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of keys and values, in UTF-8 with or without a byte order mark; an empty one gives no keys.

    Raises:
        UserError: the file is missing, unreadable, no YAML, or no mapping of text keys.
    """
    name = f"config file {str(path)!r}"
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=ValueLoader)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; check --config_files") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{name}{where}: {error.problem or 'no valid YAML'}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{name} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{name} holds a {type(content).__name__}, expected 'key: value' lines")
    for key in content or ():
        if not isinstance(key, str):
            raise UserError(f"{name}: the key {key!r} is a {type(key).__name__}, expected text")
    return content or {}


def property_files(folder: str) -> dict[str, Path]:
    """The YAML files of a folder of ``properties/`` by name; the folder "" holds the defaults of all runs."""
    return {path.stem: path for path in sorted((PROPERTIES / folder).glob("*.yaml"))}


def read_properties(name: str) -> dict[str, Any]:
    """The keys of ``properties/<name>.yaml``; none where there is no such file."""
    path = PROPERTIES / f"{name}.yaml"
    return read_yaml(path) if path.is_file() else {}

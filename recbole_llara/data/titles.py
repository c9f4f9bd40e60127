"""Each item's text: titles read from the .item file, cleaned by the dataset's rules, in the order of internal ids.

Read here and not through RecBole's token_seq, which splits a title at spaces, joins runs of them and takes "None" or
"NA" for a hole; a title may hold any character.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_llara.errors import UserError

# Articles that catalogues put behind the title, in the languages of MovieLens; "L'" binds without a space.
_ARTICLES = "The|An|A|Les|Le|La|L'|Los|Las|El|Il|Lo|Gli|Der|Die|Das|Det|Den|O"
_ARTICLE_BEHIND_TITLE = re.compile(rf"^(?P<title>[^()]+), (?P<article>{_ARTICLES})(?P<rest>| \(.*)$", re.DOTALL)
_ARTICLE_IN_BRACKETS = re.compile(rf"\((?P<title>[^()]+), (?P<article>{_ARTICLES})\)")
_YEAR_BEHIND_TITLE = re.compile(r"\s*\((?:18|19|20)\d\d\)\s*$")


def _join_article(match: re.Match[str]) -> str:
    article = match["article"]
    return article + ("" if article.endswith("'") else " ") + match["title"]


def move_article(title: str) -> str:
    """Bring an article to the front: "Matrix, The" to "The Matrix", also before and within a bracketed second title."""
    title = _ARTICLE_BEHIND_TITLE.sub(lambda match: _join_article(match) + match["rest"], title)
    return _ARTICLE_IN_BRACKETS.sub(lambda match: f"({_join_article(match)})", title)


def strip_year(title: str) -> str:
    """Remove a year in brackets at the end, unless the title is nothing else."""
    return _YEAR_BEHIND_TITLE.sub("", title) or title


TITLE_RULES: dict[str, Callable[[str], str]] = {"move_article": move_article, "strip_year": strip_year}


def clean_title(raw: str, rules: Sequence[str]) -> str:
    """Apply named rules in their order; without rules a title stays as it is.

    Raises:
        UserError: a rule is unknown.
    """
    for rule in rules:
        if rule not in TITLE_RULES:
            raise UserError(f"title_rules names '{rule}', expected some of {', '.join(TITLE_RULES)}.")
        raw = TITLE_RULES[rule](raw)
    return raw


@dataclass(frozen=True)
class Catalogue:
    """The text of all N items.

    Attributes:
        titles: length N; titles[0] is "", the padding item's.
        item_tokens: length N, external ids; item_tokens[0] is RecBole's "[PAD]".
        domain: movie, game, artist or item: which prompts fit.
    """

    titles: tuple[str, ...]
    item_tokens: tuple[str, ...]
    domain: str

    def __post_init__(self) -> None:
        if len(self.titles) != len(self.item_tokens):
            raise ValueError(f"{len(self.titles)} titles but {len(self.item_tokens)} item tokens.")

    def duplicate_groups(self) -> list[tuple[int, ...]]:
        """Items that share a title, as groups of internal ids in ascending order."""
        groups: dict[str, list[int]] = {}
        for item, title in enumerate(self.titles[1:], start=1):
            groups.setdefault(title, []).append(item)
        return [tuple(group) for group in groups.values() if len(group) > 1]


def read_item_column(path: Path, id_field: str, field: str, separator: str, encoding: str) -> dict[str, str]:
    """One column of an atomic .item file, by external id; of repeated ids the first counts, as in RecBole.

    Raises:
        UserError: no such file, or no such column.
    """
    if not path.is_file():
        raise UserError(f"No file {path}, expected the dataset's .item file with the column '{field}' (title_field).")
    with path.open(encoding=encoding, newline="") as file:
        lines = csv.reader(file, delimiter=separator)
        header = [name.split(":")[0] for name in next(lines, [])]
        for name in (id_field, field):
            if name not in header:
                raise UserError(f"{path} has the columns {', '.join(header)}, expected '{name}': see title_field.")
        id_column, column = header.index(id_field), header.index(field)
        values: dict[str, str] = {}
        for line in lines:
            if len(line) > id_column:
                values.setdefault(line[id_column], line[column] if len(line) > column else "")
    return values


def load_catalogue(dataset: Any, config: Any) -> Catalogue:
    """Read and clean the titles of a RecBole dataset's items.

    Args:
        dataset: RecBole's Dataset, for its item ids and its folder.
        config: the keys title_field, title_rules and domain.

    Raises:
        UserError: title_field is not set, the file or column is missing, or items have no title.
    """
    field = config["title_field"]
    if not field:
        raise UserError("title_field is not set, expected the .item column that holds the titles (a dataset property).")
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    separator, encoding = config["field_separator"] or "\t", config["encoding"] or "utf-8"
    raw = read_item_column(path, dataset.iid_field, str(field), separator, encoding)
    tokens = tuple(str(token) for token in dataset.id2token(dataset.iid_field, np.arange(dataset.item_num)))
    rules = config["title_rules"] or []
    titles = ("", *(clean_title(raw.get(token, ""), rules) for token in tokens[1:]))
    missing = [token for token, title in zip(tokens[1:], titles[1:], strict=True) if not title.strip()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(tokens) - 1} items have no title in '{field}' of {path} (title_field), the first: "
            f"{', '.join(missing[:5])}. Every item needs one."
        )
    return Catalogue(titles, tokens, str(config["domain"] or "item"))

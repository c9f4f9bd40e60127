"""Catalogue text of ml-100k (titles, years, genres) out of the RecBole package: all the tiny Llama reads of it."""

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from recbole_llara.data.titles import clean_title

TITLE_RULES = ("move_article",)


@dataclass(frozen=True)
class CatalogueText:
    """One film of the catalogue: no user and no rating is ever read."""

    title: str
    year: str
    genres: str

    @property
    def line(self) -> str:
        """The film as one line of text."""
        return f" {self.title} ({self.year}) {self.genres}"


def read_catalogue() -> list[CatalogueText]:
    """Read ``ml-100k.item`` of the installed RecBole package (found without importing it)."""
    package = Path(importlib.util.find_spec("recbole").origin).parent
    path = package / "dataset_example" / "ml-100k" / "ml-100k.item"
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return [CatalogueText(clean_title(title, TITLE_RULES), year, genres) for _, title, year, genres in rows]

"""Each item's text: titles and other columns of the .item file, cleaned, in the order of internal ids; and its popularity.

Read here and not through RecBole's token_seq, which splits a title at spaces, joins runs of them and takes "None" or
"NA" for a hole. Cells are taken as they stand, quotes and all (see `tables`). A title may hold any character, with
these exceptions:

- A title is one line: a run of line breaks, tabs and other ASCII control characters becomes a space, and white space at
  its ends goes. Prompts list titles one after another, and tokenizers may merge a line break with what stands before it.
- Half of a surrogate pair, which odd encodings can bring, is no character: refused.
- A title without a visible character would make an empty answer: refused.

Of another column such a cell says nothing, and is empty.
"""

import html
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recbole_llara.data.tables import read_rows
from recbole_llara.data.text_table import TextTable
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.process_setup import is_text

# Articles that catalogues put behind the title, in the languages of MovieLens; "L'" binds without a space.
_ARTICLES = "The|An|A|Les|Le|La|L'|Los|Las|El|Il|Lo|Gli|Der|Die|Das|Det|Den|O"
_ARTICLE_BEHIND_TITLE = re.compile(rf"^(?P<title>[^()]+), (?P<article>{_ARTICLES})(?P<rest>| \(.*)$", re.DOTALL)
_ARTICLE_IN_BRACKETS = re.compile(rf"\((?P<title>[^()]+), (?P<article>{_ARTICLES})\)")
# Without the white space before the year: a search that may begin at every space of a long run takes its square.
_YEAR_BEHIND_TITLE = re.compile(r"\((?:18|19|20)\d\d\)\s*$")
# ASCII's control characters and what else Unicode takes for a line break; the other C1 codes are left as they are.
_CONTROLS = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]+")
_CSV_QUOTED = re.compile(r'"(?=.*"")(?:[^"]|"")*"', re.DOTALL)  # such as "the ""real"" one"
# With their semicolon: "AT&T" and "R&not;" without one are text.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_LINE_TAGS = "br|p|div|li|ul|ol|hr|tr|td|th|table|tbody|h[1-6]|blockquote|center"
_INLINE_TAGS = "a|abbr|b|big|code|em|font|i|img|s|small|span|strong|sub|sup|tt|u"
_TAG = re.compile(rf"</?(?:(?P<line>{_LINE_TAGS})|{_INLINE_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
POPULARITY, POPULARITY_LEVELS = "popularity", 5
_POINT_ZERO = re.compile(r"(?<=\d)\.0+$")
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})  # Unicode's categories of control, format and space characters

_logger = logging.getLogger()


def one_line(title: str) -> str:
    """A title without line breaks, control characters and white space at its ends."""
    return _CONTROLS.sub(" ", title).strip()


def is_visible(title: str) -> bool:
    """Whether a title holds anything that can be seen."""
    if title.isascii() and title.isprintable():  # nearly all, in a tenth of the time
        return not title.isspace() and bool(title)
    return any(unicodedata.category(character) not in _INVISIBLE for character in title)


def untitled(titles: TextTable) -> np.ndarray:
    """The places of titles without a visible character.

    Raises:
        UnicodeDecodeError: a title holds half of a surrogate pair.
    """
    str(memoryview(titles.data), "utf-8")
    asked = titles.without_visible_start()
    first = titles.first_characters(asked)
    code_points, places = np.unique(first, return_inverse=True)
    begins_visibly = np.array([unicodedata.category(chr(point)) not in _INVISIBLE for point in code_points], dtype=bool)
    left = asked[~begins_visibly[places]] if len(asked) else asked
    return np.array([place for place in left.tolist() if not is_visible(titles[place])], dtype=np.int64)


def folded(title: str) -> str:
    """A title as it is compared where capitals do not count."""
    normal = title if title.isascii() else unicodedata.normalize("NFKC", title)
    return normal.casefold().strip()


def is_csv_quoted(title: str) -> bool:
    """Whether a title stands in quotes and has each quote inside doubled, as CSV writers leave it."""
    return _CSV_QUOTED.fullmatch(title) is not None


def _join_article(match: re.Match[str]) -> str:
    article = match["article"]
    return article + ("" if article.endswith("'") else " ") + match["title"]


def move_article(title: str) -> str:
    """Bring an article to the front: "Matrix, The" to "The Matrix", also before and within a bracketed second title."""
    title = _ARTICLE_BEHIND_TITLE.sub(lambda match: _join_article(match) + match["rest"], title)
    return _ARTICLE_IN_BRACKETS.sub(lambda match: f"({_join_article(match)})", title)


def strip_year(title: str) -> str:
    """Remove a year in brackets at the end, unless the title is nothing else."""
    found = _YEAR_BEHIND_TITLE.search(title)
    return title if found is None else title[: found.start()].rstrip() or title


def unescape_html(title: str) -> str:
    """Write HTML as text: "Tom &amp;amp; <b>Vera</b>" becomes "Tom & Vera". Entities are taken with their semicolon, tags if HTML has them."""
    text, before = title, None
    while text != before:  # of what was escaped twice
        text, before = _ENTITY.sub(lambda match: html.unescape(match[0]), text), text
    text = _TAG.sub(lambda match: " " if match["line"] else "", text)
    return title if text == title else " ".join(text.split())


TITLE_RULES: dict[str, Callable[[str], str]] = {
    "move_article": move_article,
    "strip_year": strip_year,
    "unescape_html": unescape_html,
}


def clean_title(raw: str, rules: Sequence[str]) -> str:
    """Make a title one line and apply rules of ``TITLE_RULES`` in their order."""
    title = one_line(raw)
    for rule in rules:
        title = TITLE_RULES[rule](title)
    return title


@dataclass(frozen=True)
class Catalogue:
    """The text of all N items.

    Attributes:
        titles: length N; titles[0] is "", the padding item's.
        item_tokens: length N, external ids; item_tokens[0] is RecBole's "[PAD]".
        domain: movie, game, artist or item: which prompts fit.
        fields: what else is known of the items, by the names of ``item_fields``: length N each, "" where a cell is empty;
            ``popularity`` holds the levels of ``popularity_levels``.
    """

    titles: Sequence[str]
    item_tokens: Sequence[str]
    domain: str
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """N texts: all that is known of an item without any interaction, its title and its fields but popularity."""
        columns = [self.titles, *(texts for name, texts in self.fields.items() if name != POPULARITY)]
        return [" ".join(filter(None, of_item)) for of_item in zip(*columns, strict=True)]


def load_catalogue(dataset: Any, config: Any) -> Catalogue:
    """Read and clean the texts of a RecBole dataset's items, by the keys title_field, title_rules, item_fields and domain.

    Under ``shuffle_titles`` the texts of each item, but not its popularity, are dealt to another one by ``seed``.

    Raises:
        UserError: title_field is not set, the file or a column is missing, or items have no title or a text that is none.
    """
    file, where = _item_file(dataset, config), _where(dataset, config)
    tokens, raw, titles = read_titles(dataset, config)
    if several := sum(bool(_CONTROLS.search(title)) for title in raw):
        _logger.info(f"{several} titles hold line breaks or control characters, each a space in prompts and answers")
    if quoted := sum(map(is_csv_quoted, raw)):
        _logger.warning(
            f"{quoted} titles {where} stand in quotes and have each quote inside doubled, as CSV writers leave them; they are taken "
            "as they stand: an atomic file knows no quoting"
        )
    fields = {}
    for name in config["item_fields"] or ():
        if name == POPULARITY:
            levels = popularity_levels(dataset.training_counts)
            fields[name] = ("", *map(str, levels[1:]))
            continue
        by_id, kind = _read_column(*file, name, "item_fields")
        texts = [field_text(by_id.get(token, ""), kind) for token in tokens[1:]]
        what = f"have half of a surrogate pair in '{name}' of {file.path} (item_fields)"
        _refuse(is_text, tokens, texts, what, f"Is the file in {file.encoding} (encoding)?")
        fields[name] = ("", *texts)
    texts = {"": ("", *titles), **fields}
    if config["shuffle_titles"]:
        order = 1 + np.random.default_rng(config["seed"]).permutation(len(titles))
        texts |= {name: ("", *(of[item] for item in order)) for name, of in texts.items() if name != POPULARITY}
    return Catalogue(texts.pop(""), tokens, str(config["domain"] or "item"), texts)


def read_titles(dataset: Any, config: Any) -> tuple[tuple[str, ...], list[str], list[str]]:
    """External ids of a RecBole dataset's N items; and of all but the padding item the titles, as they stand and cleaned.

    Raises:
        UserError: title_field is not set, the file or the column is missing, or items have no title or a text that is none.
    """
    if not config["title_field"]:
        raise UserError("title_field is not set, expected the .item column that holds the titles (a dataset property).")
    file, where = _item_file(dataset, config), _where(dataset, config)
    tokens, raw = raw_titles(dataset, config, config["title_field"])
    titles = [clean_title(title, config["title_rules"] or []) for title in raw]
    _refuse(is_visible, tokens, titles, f"have no title {where}", "Every item needs one.")
    _refuse(
        is_text,
        tokens,
        titles,
        f"have half of a surrogate pair in their title {where}",
        f"Is the file in {file.encoding} (encoding)?",
    )
    return tokens, raw, titles


def raw_titles(dataset: Any, config: Any, title_field: str) -> tuple[tuple[str, ...], list[str]]:
    """External ids of a RecBole dataset's N items; and the titles of all but the padding item as they stand, "" where there is none."""
    tokens = tuple(str(token) for token in dataset.id2token(dataset.iid_field, np.arange(dataset.item_num)))
    by_id, _ = _read_column(*_item_file(dataset, config), title_field, "title_field")
    return tokens, [by_id.get(token, "") for token in tokens[1:]]


class _ItemFile(NamedTuple):
    """Where an atomic .item file lies and how it is read."""

    path: Path
    id_field: str
    separator: str
    encoding: str


def _item_file(dataset: Any, config: Any) -> _ItemFile:
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    return _ItemFile(path, dataset.iid_field, config["field_separator"] or "\t", config["encoding"] or "utf-8")


def _where(dataset: Any, config: Any) -> str:
    return f"in '{config['title_field']}' of {_item_file(dataset, config).path} (title_field)"


def popularity_levels(counts: np.ndarray) -> np.ndarray:
    """[N] the level of each item, 1 to 5: each level holds about a fifth of the training interactions.

    ``level = 1 + floor(5 * interactions with items that fewer users took / all interactions)``. Levels of as many items each
    would tell less: most items are rare, so that nearly all targets would have the highest level. They would also tell what they
    must not: the low ones would begin at so few users that the target of a training row often has its level by that row alone.
    Items that nobody took in training, which are never a training target, have the lowest level together with rare ones.

    Example: the counts 0, 1, 1, 2, 6 have the levels 1, 1, 1, 2, 3.

    Args:
        counts: [N] of the training interactions alone; validation and test must not be told.
    """
    ascending = np.sort(counts)
    below = np.concatenate([[0], ascending.cumsum()])[np.searchsorted(ascending, counts)]  # [N]
    return 1 + POPULARITY_LEVELS * below // max(1, int(ascending.sum()))


def _refuse(is_right: Callable[[str], bool], tokens: Sequence[str], texts: Sequence[str], what: str, expected: str) -> None:
    """Raise a ``UserError`` where texts of items are not right; ``tokens`` begins with the padding item's."""
    bad = [token for token, text in zip(tokens[1:], texts, strict=True) if not is_right(text)]
    if bad:
        raise UserError(f"{len(bad)} of {len(texts)} items {what}, the first: {', '.join(bad[:5])}. {expected}")


def field_text(cell: str, kind: str) -> str:
    """A cell as a prompt shows it: one line, a float without ".0"; "" where it says nothing, as a float's "nan" does."""
    text = one_line(cell)
    if kind == "float":
        text = "" if text.lower() == "nan" else _POINT_ZERO.sub("", text)
    return text if is_visible(text) else ""


def _read_column(path: Path, id_field: str, separator: str, encoding: str, wanted: str, key: str) -> tuple[dict[str, str], str]:
    """One column of an atomic .item file, which ``key`` names: its cells by external id, and its RecBole type.

    Of repeated ids the first counts, as in RecBole.
    """
    if not path.is_file():
        raise UserError(f"No file {path}, expected the dataset's .item file with the column '{wanted}' ({key}).")
    rows = read_rows(path, separator, encoding)
    columns = next(rows, (1, []))[1]
    header = [name.split(":")[0] for name in columns]
    for name in (id_field, wanted):
        if name not in header:
            raise UserError(f"{path} has the columns {', '.join(header)}, expected '{name}': see {key}.")
    id_column, column = header.index(id_field), header.index(wanted)
    values: dict[str, str] = {}
    for _, cells in rows:
        values.setdefault(cells[id_column], cells[column])
    return values, columns[column].partition(":")[2]

"""The data card of a dataset under a protocol: its size and shape, what is odd in it, and what its candidates give away.

Hugging Face's form: Markdown behind metadata in YAML, both by ``huggingface_hub``. Every figure is counted when the card is made.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from recbole_llara.config.settings import READY_MADE, SPLITS
from recbole_llara.data.dataset import PreparedData
from recbole_llara.data.leaks import Finding, find_leaks
from recbole_llara.data.rows import SPLITS as SPLIT_NAMES
from recbole_llara.data.statistics import DataStatistics, data_statistics
from recbole_llara.data.tables import HOLES, as_float, read_rows
from recbole_llara.data.titles import clean_title, is_visible, raw_titles

FRONT = "---\n{{ card_data }}\n---\n\n{{ content }}"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_DATES_BEGIN = 1e8  # (s) March 1973: smaller numbers are steps rather than times
TO_FILL_IN = (
    "**To be filled in**: nobody has said under which licence this may be used. Give `--license` to `recbole-llara card`, or write "
    "`license:` into the metadata above."
)
POPULAR = "training interactions: most"  # of ``leaks.RULES``


def data_card(data: PreparedData, title_field: str | None, epochs: int = 5, licence: str | None = None) -> DatasetCard:
    """The card of the dataset that a run would read.

    Args:
        data: with its loaders; its own title_field may be None, so that items without titles are counted instead of refused.
        title_field: column of the titles; None = there is none.
        epochs: training epochs whose draws the leak rules see.
        licence: an identifier as the Hugging Face hub knows it; None = the card asks its reader to fill it in.

    Raises:
        UserError: a file of the dataset cannot be read.
    """
    counted, name = data_statistics(data), data.dataset.config["dataset"]
    front = DatasetCardData(
        pretty_name=name,
        license=licence,
        size_categories=next((told for bound, told in _SIZES if counted.interactions < bound), "n>10M"),
        tags=["recommendation", "sequential-recommendation", "recbole"],
    )
    parts = _parts(data, counted, title_field, find_leaks(data, epochs), epochs, licence)
    return DatasetCard.from_template(front, template_str=FRONT, content="\n\n".join(parts))


def _parts(
    data: PreparedData,
    counted: DataStatistics,
    title_field: str | None,
    findings: Sequence[Finding],
    epochs: int,
    licence: str | None,
) -> Iterator[str]:
    config = data.dataset.config
    yield f"# {config['dataset']} under the protocol {config['protocol']}"
    yield "Interactions of users with items, in RecBole's atomic files, as recbole-llara reads them."
    yield "## Size\n\n" + facts_table(_size_rows(counted, config))
    yield "## Interactions\n\n" + facts_table(_file_rows(data))
    yield "## Titles\n\n" + facts_table(_title_rows(data, title_field))
    yield "## Popularity\n\n" + facts_table(_popularity_rows(counted, findings))
    yield "## Leaks\n\n" + _leaks(findings, epochs)
    yield "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(counted))
    yield f"## Licence\n\n{licence_text(licence)}"


def facts_table(rows: Mapping[str, Any]) -> str:
    """A Markdown table of facts by name."""
    cells = [[name, " ".join(str(value).splitlines()).replace("|", "\\|")] for name, value in rows.items()]
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])


def licence_text(licence: str | None) -> str:
    """What a card says of its licence."""
    return TO_FILL_IN if licence is None else f"`{licence}`, as the person who made this card says."


def _size_rows(counted: DataStatistics, config: Any) -> dict[str, str]:
    per_user = counted.per_user
    rows = {
        "users": f"{counted.users:,}",
        "items with interactions": f"{counted.items:,}",
        "interactions that the filters keep": f"{counted.interactions:,}; {counted.pairs:,} different pairs of user and item",
        "density": f"{counted.density:.4%} of all pairs",
        "interactions of a user": f"{per_user['min']:.0f} to {per_user['max']:,.0f}, median {per_user['median']:g}, mean {per_user['mean']:.1f}",
        "rows": ", ".join(f"{split} {count:,}" for split, count in counted.rows.items()),
        "history": f"the latest {config['MAX_ITEM_LIST_LENGTH']} items",
        "candidates": f"{config['candidate_num']} a row; candidate_exclude {config['candidate_exclude']}",
        "rows whose target nobody took in training": ", ".join(
            f"{split} {n:,}" for split, n in counted.unlearned_targets.items()
        ),
    }
    if counted.held_out_items is not None:
        rows["items held out from training"] = ", ".join(f"{split} {n:,}" for split, n in counted.held_out_items.items())
    return rows


def _file_rows(data: PreparedData) -> dict[str, str]:
    """What stands in the files, before any filter."""
    dataset = data.dataset
    config, is_ready = dataset.config, SPLITS[dataset.config["protocol"]] == READY_MADE
    endings = [f".{name}.inter" for name in SPLIT_NAMES] if is_ready else [".inter"]
    wanted = [dataset.uid_field, dataset.iid_field] + ([] if is_ready else [dataset.time_field])
    cells: list[tuple[str, ...]] = []
    for ending in endings:
        cells += _columns(Path(dataset.dataset_path) / f"{dataset.dataset_name}{ending}", wanted, config)
    rows = {"lines in the files": f"{len(cells):,}"}
    again = Counter((user, item) for user, item, *_ in cells)
    repeated = sum(count - 1 for count in again.values())
    what = "lines that repeat a user's item" if not is_ready else "windows that repeat a user's next item"
    rows[what] = f"{repeated:,} ({repeated / len(cells):.2%})"
    if is_ready:
        return {**rows, "times": "none: the windows are ready-made"}
    same = Counter(cells)
    rows["lines that repeat user, item and time"] = f"{sum(count - 1 for count in same.values()):,}"
    moments = Counter((user, time) for user, _, time in cells)
    ties = sum(count for count in moments.values() if count > 1)
    rows["lines that share user and time with another"] = f"{ties:,} ({ties / len(cells):.2%}): their order is that of the file"
    times = [as_float(time) for *_, time in cells if time not in HOLES]
    return {**rows, "times": f"{_moment(min(times))} to {_moment(max(times))}"}


def _columns(path: Path, wanted: Sequence[str], config: Any) -> Iterator[tuple[str, ...]]:
    rows = read_rows(path, config["field_separator"], config["encoding"] or "utf-8")
    header = [name.partition(":")[0] for name in next(rows)[1]]
    places = [header.index(name) for name in wanted]
    return (tuple(cells[place] for place in places) for _, cells in rows)


def _moment(seconds: float) -> str:
    is_date = _DATES_BEGIN <= seconds < 1e11
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d") if is_date else f"{seconds:g}"


def _title_rows(data: PreparedData, title_field: str | None) -> dict[str, str]:
    """How many items have titles, and how far titles tell items apart."""
    if title_field is None:
        return {"titles": "none: title_field is not set, so LLM recommenders cannot read this dataset"}
    rules = data.dataset.config["title_rules"] or []
    titles = [clean_title(title, rules) for title in raw_titles(data.dataset, data.dataset.config, title_field)[1]]
    shown = [title for title in titles if is_visible(title)]
    if not shown:
        return {"items with a title": f"0 of {len(titles):,}"}
    groups = [count for count in Counter(shown).values() if count > 1]
    lengths = sorted(map(len, shown))
    return {
        "items with a title": f"{len(shown):,} of {len(titles):,} ({len(shown) / len(titles):.2%})",
        "titles that several items share": f"{len(groups):,}, of {sum(groups):,} items; an answer by such a title is valid only where one candidate has it",
        "characters of a title": f"{lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}",
    }


def _popularity_rows(counted: DataStatistics, findings: Sequence[Finding]) -> dict[str, str]:
    rows = {
        "Gini coefficient of interactions per item": f"{counted.gini:.3f} (0 = all items alike, 1 = one item has all)",
        "interactions with the most popular tenth of the items": f"{counted.top_tenth:.1%}",
    }
    for found in findings:
        if found.rule == POPULAR:
            name = f"HitRatio@1 of the most popular candidate, {found.split}"
            rows[name] = (
                f"{found.share:.4f} (95 % interval {found.low:.3f} to {found.high:.3f}), n = {found.n:,}; chance {found.chance:.4f}"
            )
    return rows


def _leaks(findings: Sequence[Finding], epochs: int) -> str:
    leaks = [found for found in findings if found.is_leak]
    told = [
        f"{len(findings)} answers of rules without a model, which see the draws of {epochs} training epochs: "
        f"**{len(leaks)} leaks**. A leak is a share that differs from chance by more than three standard errors and that nothing in the data explains."
    ]
    shown = [found for found in findings if not found.is_chance]
    if shown:
        told.append(
            "\n".join(
                ["| split | rule | share | chance | n | verdict |", "|---|---|---:|---:|---:|---|"]
                + [
                    f"| {found.split} | {found.rule} | {found.share:.3f} | {found.chance:.3f} | {found.n:,} | {found.reason or 'LEAK'} |"
                    for found in shown
                ]
            )
        )
    return "\n\n".join(told)


def _limits(counted: DataStatistics) -> Iterator[str]:
    popular, count = counted.popularity_hit["test"], counted.candidates["candidate_num"]
    yield (
        f"Candidate bias: popular items are rarely negatives, so the candidate with most training interactions is the target in {popular:.4f} of the "
        f"test rows, where chance has {1 / count:.4f}. Compare every system with it."
    )
    yield "The files hold users' ids and what each of them took, in order of time: personal data, where ids can be traced to people."
    yield "Only items that somebody took are candidates. What users were shown, and did not take, is unknown."

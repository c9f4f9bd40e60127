"""A loaded run whose items change: new ones, renamed ones and removed ones, each change whole or not at all.

Nothing of the run's folder is written. What was told is kept in ``changes``, from which ``serving.items`` writes a file that another
process, or the next start, reads: from the same file every process has the same items under the same vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from recbole_llara.config.settings import LOCAL, RecommenderSettings
from recbole_llara.data.titles import POPULARITY
from recbole_llara.model.newcomers import Newcomers
from recbole_llara.prompt.fields import bracketed
from recbole_llara.serving.items import ItemChange, refuse_twice, told_of
from recbole_llara.utils.errors import UserError

LOWEST = "1"  # of ``popularity_levels``: nobody took a new item in training


@dataclass(frozen=True)
class ChangedItems:
    """How many items a change has touched."""

    added: int
    renamed: int
    removed: int
    returned: int


@dataclass
class _Plan:
    """A change before it is made, by internal id."""

    ids: dict[int, str] = field(default_factory=dict)  # of new items
    titles: dict[int, str] = field(default_factory=dict)  # of new and of renamed ones
    fields: dict[int, dict[str, str]] = field(default_factory=dict)  # of these
    removed: set[int] = field(default_factory=set)
    returned: set[int] = field(default_factory=set)


class ChangingItems:
    """The items of a loaded run, and what was told of them since training.

    Args:
        run: a ``LoadedRun``.

    Attributes:
        changes: by id, all that was told, in the order in which it came.
        removed: internal ids of items that are not recommended any more.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self.changes: dict[str, ItemChange] = {}
        self.removed: set[int] = set()
        self._fields: dict[int, dict[str, str]] = {}  # of new and of renamed items, by internal id

    def told(self, row: Mapping[str, Any]) -> ItemChange:
        """What a mapping tells of an item; see ``told_of``."""
        config = self._run.config
        return told_of(row, config["item_fields"] or (), config["title_rules"] or ())

    def change(self, changes: Sequence[ItemChange]) -> ChangedItems:
        """Make changes, each of another item.

        Raises:
            UserError: the run has no LLM, a new item has no title, or an unknown one is removed; then nothing has changed.
        """
        run = self._run
        if not run.is_llm:
            raise UserError(
                f"items: {run.config['model']} knows items by their interactions alone, expected a run whose model has an LLM, which "
                "reads the titles of new ones"
            )
        if run.config["backend"] != LOCAL:
            raise UserError(
                f"items: with backend {run.config['backend']} the server holds the vectors of the items that were exported, expected backend "
                "local, which makes those of new ones"
            )
        refuse_twice(changes)
        plan, count = _Plan(), len(run.names.ids)
        for one in changes:
            self._plan(one, plan, count)
        if plan.titles:
            self._newcomers.change(plan.titles, self._behind_titles(plan.fields), self._texts(plan), len(plan.ids))
            run.names.put(plan.ids, plan.titles)
            self._fields |= plan.fields
        self.removed = (self.removed | plan.removed) - plan.returned
        run.retriever.change_items(count, len(plan.ids), self.removed)
        for one in changes:
            self.changes[one.item_id] = one.over(self.changes[one.item_id]) if one.item_id in self.changes else one
        return ChangedItems(len(plan.ids), len(plan.titles) - len(plan.ids), len(plan.removed), len(plan.returned))

    def _plan(self, one: ItemChange, plan: _Plan, count: int) -> None:
        """What a change means, beside those before it; ``count`` items are known."""
        item = self._run.names.of_id(one.item_id)
        if item is None:
            if one.title is None:
                raise UserError(
                    f"items: item {one.item_id!r} is not known and has no title, expected a title or the id of a known item"
                )
            item = count + len(plan.ids)
            plan.ids[item], plan.titles[item] = one.item_id, one.title
            plan.fields[item] = {name: one.fields.get(name, "") for name in self._names if name != POPULARITY}
            if POPULARITY in self._names:
                plan.fields[item][POPULARITY] = LOWEST
        else:
            title, fields = self._run.names.titles[item], self._fields_of(item)
            told = (title if one.title is None else one.title, {**fields, **one.fields})
            if told != (title, fields):
                plan.titles[item], plan.fields[item] = told
        if one.removed and item not in self.removed:
            plan.removed.add(item)
        elif one.removed is False and item in self.removed:
            plan.returned.add(item)

    @property
    def _names(self) -> Sequence[str]:
        """The fields that prompts show."""
        return list(self._run.data.catalogue.fields)

    def _fields_of(self, item: int) -> dict[str, str]:
        if item in self._fields:
            return self._fields[item]
        return {name: of_items[item] for name, of_items in self._run.data.catalogue.fields.items()}

    def _behind_titles(self, fields: Mapping[int, Mapping[str, str]]) -> dict[int, str]:
        """What prompts show behind titles, by item."""
        if not self._names:
            return {}
        columns = {name: [of_item[name] for of_item in fields.values()] for name in self._names}
        shown = bracketed(columns, self._run.model.tokenizer, self._run.config["max_field_tokens"])
        return dict(zip(fields, shown, strict=True))

    def _texts(self, plan: _Plan) -> dict[int, str]:
        """What is known of items without any interaction, by item; as ``Catalogue.texts``."""
        told = {
            item: [title, *(text for name, text in plan.fields[item].items() if name != POPULARITY)]
            for item, title in plan.titles.items()
        }
        return {item: " ".join(filter(None, texts)) for item, texts in told.items()}

    @cached_property
    def _newcomers(self) -> Newcomers:
        run = self._run
        concluding = run.model.conclude
        networks = [(run.retriever.model, run.retriever.config)]
        if concluding is not None:
            networks.append((concluding.model, concluding.config))
        texts, settings = run.data.catalogue.texts(), RecommenderSettings.from_config(run.config)
        return Newcomers(run.model, run.recommender, texts, settings, networks)

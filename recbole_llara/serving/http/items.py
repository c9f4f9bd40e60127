"""Items that change while a service runs: what is posted goes to every run, and to a file from which every worker takes it.

Without a file (``--items``) a change lasts as long as the only worker does, and is said to. With one, a worker looks at the file before
each batch: what another worker took in is there for the next question.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from recbole_llara.serving.changing import ChangedItems
from recbole_llara.serving.http.runs import ServedRun
from recbole_llara.serving.items import ItemChange, read_items, write_items
from recbole_llara.utils.atomic import sole_writer


class ServedItems:
    """The items of all runs of a service; called by the thread that answers, and by no other.

    Args:
        runs: at least one.
        path: the file that keeps what is told; None = nothing keeps it.
        is_alone: whether no other process serves the same port.

    Raises:
        UserError: what the file tells is of another form, or a run cannot have it.
    """

    def __init__(self, runs: Sequence[ServedRun], path: Path | None, is_alone: bool = True) -> None:
        self._runs, self._path, self._is_alone = [run.run for run in runs], path, is_alone
        self._seen: tuple[int, ...] | None = None
        self.take()

    @property
    def are_kept(self) -> bool:
        """Whether changes outlive the process."""
        return self._path is not None

    @property
    def refusal(self) -> str | None:
        """Why no item can be changed; None where items can."""
        if stock := next((run.name for run in self._runs if not run.is_llm), None):
            return f"{stock}, which is served too, reads no titles of new items: leave it out of --compare"
        if self._path is None and not self._is_alone:
            return "several workers answer, and no file keeps what one of them is told: start the service with --items=FILE"
        return None

    def take(self) -> None:
        """Take in what the file tells, where it is another than before."""
        seen = None if self._path is None else _stamp(self._path)
        if seen is not None and seen != self._seen:
            self._change(read_items(self._path, self._runs[0].config))
            self._seen = seen

    def change(self, rows: Sequence[Mapping[str, Any]]) -> ChangedItems:
        """Change items, as ``LoadedRun.add_items``; then the file has it too.

        Raises:
            HTTPException: 409, where others would not know of it.
            UserError: as ``LoadedRun.add_items``.
        """
        if self._path is None and not self._is_alone:
            raise HTTPException(
                409, "several workers answer, and no file keeps what one is told: start the service with --items=FILE"
            )
        if stock := next((run.name for run in self._runs if not run.is_llm), None):
            raise HTTPException(409, f"{stock}, which is served too, reads no titles of new items: leave it out of --compare")
        changes = [self._runs[0].changing.told(row) for row in rows]
        if self._path is None:
            return self._change(changes)
        with sole_writer(self._path):
            self.take()
            done = self._change(changes)
            write_items(self._path, self._runs[0].config, list(self._runs[0].changing.changes.values()))
            self._seen = _stamp(self._path)
        return done

    def _change(self, changes: Sequence[ItemChange]) -> ChangedItems:
        done = [run.changing.change(changes) for run in self._runs]
        return done[0]


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What tells whether a file is the same one; None where there is none."""
    try:
        told = path.stat()
    except FileNotFoundError:
        return None
    return told.st_ino, told.st_size, told.st_mtime_ns

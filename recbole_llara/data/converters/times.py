"""Times of a user's own file as seconds since 1970: numbers of any unit, or dates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llara.utils.errors import UserError

_A_SECOND = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
# Numbers from here on are of the unit: 1e11 s is the year 5138, 1e11 ms is 1973.
_BEGINS = {"ms": 1e11, "us": 1e14, "ns": 1e17}
_DAY_NUMBERS = (19000101, 21001231)


class Clock:
    """Reads times batch by batch; the first one says whether they are numbers or dates, and of which unit.

    Args:
        path: of the file, for messages.
        unit: of numbers, one of ``converters.UNITS``; None = by their size.
        form: of dates, as ``strptime`` has it; None = ISO 8601.

    Raises:
        UserError: dates under ``unit``, days written as numbers, or units that change within the file.
    """

    def __init__(self, path: Path, unit: str | None, form: str | None) -> None:
        if unit is not None and form is not None:
            raise UserError(f"time_unit: found {unit} beside --time_format {form}, expected one of them")
        self._path, self._unit, self._form = path, unit, form
        self._is_given = unit is not None
        self._is_number: bool | None = None

    def seconds(self, cells: Sequence[str]) -> np.ndarray:
        """The seconds since 1970 of a batch, float64; NaN where a cell is none."""
        column = pd.Series(cells, dtype=object)
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, copy=True)
        numbers[~np.isfinite(numbers)] = np.nan
        if self._is_number is None:
            self._begin(numbers)
        if self._is_number:
            self._check_unit(numbers)
            return numbers / _A_SECOND[self._unit]
        dates = pd.to_datetime(column.str.strip(), errors="coerce", utc=True, format=self._form or "ISO8601")
        if dates.notna().sum() < np.isfinite(numbers).sum() and self._form is None:
            raise UserError(f"timestamp: found dates and then numbers in {self._path}, expected one of them throughout")
        return ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).to_numpy(dtype=np.float64)

    def notes(self, seconds: np.ndarray) -> list[str]:
        """What the times were; ``seconds`` are all that are kept."""
        if not self._is_number:
            return ["timestamp: dates, written as seconds since 1970 (UTC where they name no zone)"]
        if self._unit != "s":
            return [f"timestamp: taken for {self._unit} and written as seconds (--time_unit)"]
        return []

    def _begin(self, numbers: np.ndarray) -> None:
        found = numbers[np.isfinite(numbers)]
        self._is_number = self._form is None and 2 * len(found) >= max(1, len(numbers))
        if not self._is_number:
            if self._unit is not None:
                raise UserError(
                    f"time_unit: found times in {self._path} that are no numbers, expected numbers; --time_format is of dates"
                )
            return
        if self._unit is None:
            size = np.median(np.abs(found))
            self._unit = max((unit for unit, begin in _BEGINS.items() if size >= begin), key=_A_SECOND.get, default="s")
            first, last = _DAY_NUMBERS
            if ((found >= first) & (found <= last)).all() and not pd.to_datetime(
                pd.Series(found.astype(np.int64).astype(str)), format="%Y%m%d", errors="coerce"
            ).isna().any():
                raise UserError(
                    f"timestamp: found {found[0]:.0f} in {self._path}, a day or a number; expected --time_format=%Y%m%d for days, or "
                    "--time_unit=s"
                )

    def _check_unit(self, numbers: np.ndarray) -> None:
        if self._is_given:
            return
        size = np.abs(numbers[np.isfinite(numbers) & (numbers != 0)])
        ends = [begin for begin in _BEGINS.values() if begin > _BEGINS.get(self._unit, 0)]
        if len(size) and (size.max() >= min(ends, default=np.inf) or size.min() * 10 < _BEGINS.get(self._unit, 0)):
            raise UserError(
                f"timestamp: found {size.min():.0f} and {size.max():.0f} in {self._path}, which look like times of different units; "
                f"expected one, {self._unit} by most: --time_unit={self._unit} takes all so"
            )

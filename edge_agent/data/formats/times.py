"""Times of rows: from what loggers write to seconds since 1970, and the features made of them."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from math import nan, pi

import numpy as np

from edge_agent.data.file_settings import EPOCH_UNITS, TimeConfig
from edge_agent.data.formats.block import Block, CellError
from edge_agent.data.formats.cells import ABSENT
from learning.vector.parameters import F64

_DAY_S = 86_400.0
#: Days of a mean year of the Gregorian calendar.
_YEAR_DAYS = 365.2425
#: A number that has fewer digits than this is in seconds, one with fewer than the next in ms ...
_LARGEST_S = (("s", 1e11), ("ms", 1e14), ("us", 1e17), ("ns", 1e20))
#: Day, month, year, hour, minute, second and its fraction; taken without being told, besides
#: ISO 8601. With slashes nobody knows which is the month.
_DAY_FIRST = re.compile(
    r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:,? +(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?"
)

#: Features of a time by name, as inputs may name them: `time.hour` is 0 to 24.
FEATURES = tuple(
    f"time.{name}{end}"
    for name, ends in (
        ("seconds", ("",)),
        ("hour", ("", "_sin", "_cos")),
        ("weekday", ("", "_sin", "_cos")),
        ("yearday", ("", "_sin", "_cos")),
    )
    for end in ends
)


class Times:
    """Reader of the column of times.

    Args:
        config: of the column.

    Attributes:
        config: of the column.
        notes: what was found about it.
    """

    def __init__(self, config: TimeConfig) -> None:
        self.config = config
        self.notes: list[str] = []
        self._kept = array("d")
        self._zone: tzinfo = UTC
        if config.zone != "UTC":
            from zoneinfo import ZoneInfo  # seldom needed

            self._zone = ZoneInfo(config.zone)
        self._parse: Callable[[str], float] | None = None
        self._last = -np.inf

    def read(self, block: Block, position: int, *, drop: bool) -> F64:
        """Returns seconds since 1970, shape (rows,); NaN: no time.

        Raises:
            CellError: a cell is no time; or empty, unless `drop`.
        """
        cells = block.cells(position)
        epoch = np.empty(len(cells))
        for row, cell in enumerate(cells):
            try:
                epoch[row] = self.seconds(cell)
            except (ValueError, OverflowError) as error:
                raise CellError(
                    block,
                    row,
                    f"column {self.config.column!r}: {str(cell)[:40]!r} is no time"
                    f"{_advice(str(cell), self.config)}",
                    is_unread=True,
                ) from error
            if epoch[row] != epoch[row] and not drop:
                raise CellError(
                    block,
                    row,
                    f"column {self.config.column!r}: {str(cell)!r} is no time; "
                    "with `nan: drop` such rows are left out",
                )
        return epoch

    def keep(self, epoch: F64) -> None:
        """Keeps the times of a block."""
        self._kept.frombytes(epoch.tobytes())

    def epoch(self) -> F64:
        """Returns all times kept."""
        return np.frombuffer(self._kept, np.float64)

    def feature(self, name: str) -> Callable[[F64], F64] | None:
        """Returns what makes a feature of times; None: there is none of this name."""
        if name not in FEATURES:
            return None
        return lambda epoch: self._feature(name, epoch)

    def _feature(self, name: str, epoch: F64) -> F64:
        what, _, wave = name.removeprefix("time.").partition("_")
        if what == "seconds":
            return epoch
        local = epoch + self._offsets(epoch)
        days = local / _DAY_S
        values, cycle = {
            "hour": (local % _DAY_S / 3600, 24.0),
            "weekday": ((days + 3) % 7, 7.0),  # 1970 began on a Thursday; Monday is 0
            "yearday": (_days_of_year(local), _YEAR_DAYS),
        }[what]
        if not wave:
            return values
        turn = np.sin if wave == "sin" else np.cos
        found: F64 = turn(2 * pi * values / cycle)
        return found

    def _offsets(self, epoch: F64) -> F64:
        """Seconds that the zone's clock is ahead of UTC, at each time."""
        offsets = np.zeros(len(epoch))
        if self._zone is UTC:
            return offsets
        known: dict[int, float] = {}  # changes of clocks are at full quarters of an hour
        for row, second in enumerate(epoch.tolist()):
            if second != second:
                continue
            quarter = int(second // 900)
            if quarter not in known:
                moment = datetime.fromtimestamp(quarter * 900, self._zone)
                known[quarter] = (moment.utcoffset() or timedelta()).total_seconds()
            offsets[row] = known[quarter]
        return offsets

    def seconds(self, cell: object) -> float:
        """Returns seconds since 1970 of what is in a cell; NaN: no time.

        Raises:
            ValueError: it is no time.
        """
        if cell is None:
            return nan
        if not isinstance(cell, str):
            return self._of_number(float(cell))  # type: ignore[arg-type]
        text = cell.strip()
        if self._parse is None:
            if text.lower() in ABSENT:
                return nan
            self._parse = self._parser(text)
        try:
            return self._parse(text)
        except (ValueError, OverflowError):
            if text.lower() in ABSENT:
                return nan
            raise

    def _parser(self, text: str) -> Callable[[str], float]:
        """Returns the parser of texts like this one."""
        wanted = self.config.format
        if wanted in EPOCH_UNITS:
            return lambda cell: self._of_number(float(cell))
        if "%" in wanted:
            return lambda cell: self._of_moment(datetime.strptime(cell, wanted))
        if wanted == "iso":
            return self._of_iso
        readers = [lambda cell: self._of_number(float(cell)), self._of_iso]
        if len(text) == 8:  # 20261130 is a date
            readers.reverse()
        for parse in readers:
            try:
                parse(text)
            except (ValueError, OverflowError):
                continue
            return parse
        self._of_day_first(text)
        self.notes.append("times are day.month.year")
        return self._of_day_first

    def _of_iso(self, text: str) -> float:
        return self._of_moment(datetime.fromisoformat(text))

    def _of_day_first(self, text: str) -> float:
        """Seconds since 1970 of 31.12.2026 23:59:59,250; what is behind the day may be missing."""
        match = _DAY_FIRST.fullmatch(text)
        if match is None:
            raise ValueError(text)
        day, month, year, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        moment = datetime(year, month, day, hour, minute, second)
        return self._of_moment(moment) + float(f"0.{match[7] or 0}")

    def _of_moment(self, moment: datetime) -> float:
        """Seconds since 1970; a time without a zone is one of the configured zone.

        Where clocks are put back an hour comes twice: it is taken as the second one when the first
        would go back in time.
        """
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self._zone)
            if self._zone is not UTC:
                found = moment.timestamp()
                if found < self._last:
                    later = moment.replace(fold=1).timestamp()
                    found = later if later >= self._last else found
                self._last = found
                return found
        return moment.timestamp()

    def _of_number(self, number: float) -> float:
        """Seconds since 1970 of a number in the unit that its size, or the setting, says."""
        unit = self.config.format
        if unit not in EPOCH_UNITS:
            size = abs(number)
            unit = next((name for name, limit in _LARGEST_S if size < limit), "")
            if not unit:
                raise ValueError(number)
        return number * EPOCH_UNITS[unit]


def _days_of_year(local: F64) -> F64:
    """Days since the year began, of seconds of a local clock."""
    with np.errstate(invalid="ignore"):
        moments = np.where(np.isfinite(local), local, 0).astype("datetime64[s]")
    begin = moments.astype("datetime64[Y]").astype("datetime64[s]").astype(np.float64)
    return (local - begin) / _DAY_S


def _advice(cell: str, config: TimeConfig) -> str:
    if config.format == "auto" and "/" in cell:
        return (
            "; which is the day? Write `time: {format: '%d/%m/%Y %H:%M'}` or "
            "`time: {format: '%m/%d/%Y %H:%M'}` into data"
        )
    if config.format == "auto":
        return (
            "; expected ISO 8601, 31.12.2026 23:59 or a number since 1970, or the pattern that "
            "data.time.format gives, such as '%d.%m.%y %H:%M'"
        )
    return f"; expected {config.format}, as data.time.format says"


def feature_of(
    name: str, titles: Sequence[str], times: Times | None
) -> Callable[[F64], F64] | None:
    """Returns what makes an input of times; None: the name is that of a column.

    The column of times itself, as an input, is seconds since 1970.
    """
    if times is None:
        return None
    if name == times.config.column:
        return times.feature("time.seconds")
    return None if name in titles else times.feature(name)

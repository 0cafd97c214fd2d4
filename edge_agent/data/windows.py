"""Windows: stretches of readings that follow each other, each one row of the model.

Readings come in pieces and are cut as they come: of each group only those are kept that the next
window needs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from edge_agent.data.file_settings import WindowConfig
from edge_agent.data.kept_windows import KeptWindows, Readings
from edge_agent.data.read_options import ReadOptions
from edge_agent.data.table import Array, EmptyDataError, Table, tensors
from fedge.console import counted
from fedge.errors import DataError
from learning.vector.parameters import F64

log = logging.getLogger(__name__)

#: Readings of a piece.
_PIECE = 1 << 14


class OutOfOrderError(DataError):
    """A reading belongs into windows that are cut already: all have to be sorted first."""


@dataclass(eq=False)
class _Group:
    """State of a group between two pieces.

    Attributes:
        pending: readings that further windows may need.
        origin: time at which the current run began; NaN: no run has begun.
        next: where the next window begins: in steps of `every` from `origin`, or for rows as they
            are from the first pending reading.
        done: readings before this time are cut.
        holes: unusable readings so far.
    """

    pending: list[Readings] = field(default_factory=list)
    origin: float = np.nan
    next: int = 0
    done: float = -np.inf
    holes: int = 0


class WindowCutter:
    """Cutter of readings into the windows of a table.

    Args:
        options: of reading.
        unit: of places in files.
    """

    def __init__(self, options: ReadOptions, unit: str) -> None:
        config = options.config
        assert config.window is not None
        self._path = options.path
        self._config = config
        self._window: WindowConfig = config.window
        self._is_sorted = options.in_order
        self._tensors = tensors(config, options.spec)
        self._kept = KeptWindows(options, unit)
        self._whole_numbers = np.zeros(0, bool)
        self._waiting: list[Readings] = []
        self._groups: dict[int, _Group] = {}
        self._readings = self._lost = self._late = self._longest = 0
        self._apart_s = 0.0

    def begin(self, path: Path, names: Mapping[str, Sequence[str]]) -> None:
        """Begins another file.

        Args:
            path: of the file.
            names: of each tensor's columns.
        """
        self._kept.begin(path, names)
        whole = [(tensor.dtype == "int32", len(names[tensor.name])) for tensor in self._tensors]
        self._whole_numbers = np.repeat([one for one, _ in whole], [count for _, count in whole])

    def add(
        self,
        values: Sequence[F64],
        epoch: F64 | None,
        group: Array | None,
        lines: Sequence[int],
    ) -> None:
        """Adds readings.

        Args:
            values: of each tensor, shape (n, columns); not finite: not to be used.
            epoch: times, shape (n,); None: in the order of time.
            group: shape (n,); None: all are one group.
            lines: of the file.

        Raises:
            OutOfOrderError: one is earlier than what is cut.
            DataError: too many windows, or a number that cannot be used.
        """
        count = len(lines)
        self._readings += count
        self._waiting.append(
            Readings(
                np.zeros(count) if epoch is None else epoch,
                np.concatenate(values, axis=1),
                np.full(count, self._kept.file, np.int32),
                np.asarray(lines, np.int64),
                np.zeros(count, np.int32) if group is None else group,
                np.zeros(count, np.int64),
            )
        )
        if self._is_sorted and sum(map(len, self._waiting)) >= _PIECE:
            self._cut(final=False)

    def _cut(self, *, final: bool) -> None:
        """Cuts what waits, group by group."""
        piece = Readings.joined(self._waiting) if self._waiting else None
        self._waiting = []
        if piece is not None:
            order = np.argsort(piece.group, kind="stable")
            edges = np.flatnonzero(np.diff(piece.group[order])) + 1
            for rows in np.split(order, edges):
                part = piece.chosen(rows)
                state = self._groups.setdefault(int(part.group[0]), _Group())
                self._take(part, state)
                if not final:
                    self._go_on(state, final=False)
        if final:
            for state in self._groups.values():
                self._go_on(state, final=True)

    def _take(self, part: Readings, state: _Group) -> None:
        """Puts usable readings behind those that are pending."""
        timed = np.isfinite(part.epoch)
        self._lost += int((~timed).sum())
        part = part.chosen(timed)
        late = int((part.epoch[1:] < part.epoch[:-1]).sum())
        if late:
            self._late += late
            part = part.chosen(np.argsort(part.epoch, kind="stable"))
        good = self._usable(part.values)
        self._lost += int((~good).sum())
        holes = state.holes + np.cumsum(~good)
        state.holes = int(holes[-1]) if len(holes) else state.holes
        part.holes[:] = holes
        part = part.chosen(good)
        if len(part):
            if part.epoch[0] < state.done:
                raise OutOfOrderError(f"{self._path}: rows are not in the order of time")
            state.pending.append(part)

    def _usable(self, values: F64) -> Array:
        good = np.isfinite(values)
        for tensor in self._tensors:
            if tensor.missing is not None:
                part = self._kept.columns_of(tensor)
                good[:, part] |= np.isnan(values[:, part])
        usable: Array = good.all(1)
        return usable

    def _go_on(self, state: _Group, *, final: bool) -> None:
        """Cuts the runs of a group; the last one may go on in the next piece."""
        if not state.pending:
            return
        readings = Readings.joined(state.pending)
        if (np.diff(readings.epoch) < 0).any():
            self._late += 1
            readings = readings.chosen(np.argsort(readings.epoch, kind="stable"))
        if not self._apart_s and len(readings) > 1:
            self._apart_s = float(np.median(np.diff(readings.epoch)))
        breaks = np.zeros(len(readings) - 1, bool)
        if not self._window.every:  # no reading may be missing: nothing fills the hole
            breaks |= np.diff(readings.holes) != 0
        if self._config.time is not None and self._window.longest_pause_s:
            breaks |= np.diff(readings.epoch) > self._window.longest_pause_s
        edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(readings)]
        for start, stop in pairwise(edges):
            run = readings.chosen(slice(start, stop))
            is_last = stop == len(readings)
            kept = self._run(run, state, final=final or not is_last)
            if final or not is_last:
                state.origin, state.next = np.nan, 0
                state.done = float(run.epoch[-1])
            else:
                state.pending = [run.chosen(slice(kept, None))]
                if kept:
                    state.done = float(run.epoch[kept - 1])
        if final:
            state.pending = []

    def _run(self, run: Readings, state: _Group, *, final: bool) -> int:
        """Cuts a run; returns from which reading on it is still needed."""
        if self._window.every:
            return self._resampled(run, state, final=final)
        made = self._windows(run.values, run, state.next)
        self._longest = max(self._longest, len(run) - state.next)
        begin = state.next + made
        kept = min(begin, len(run) - 1)
        state.next = begin - kept
        return kept

    def _resampled(self, run: Readings, state: _Group, *, final: bool) -> int:
        """Cuts a run of readings that are made exactly `every` seconds apart.

        Readings nearest to one moment are averaged, then values are interpolated linearly. Classes
        and other whole numbers are those of the latest reading.
        """
        every_s = self._window.every
        if state.origin != state.origin:
            state.origin, state.next = float(run.epoch[0]), 0
        times = run.epoch - state.origin
        nearest = np.floor(times / every_s + 0.5).astype(np.int64)
        starts = np.flatnonzero(np.diff(nearest, prepend=nearest[0] - 1))
        counts = np.diff(starts, append=len(times))
        centres = np.add.reduceat(times, starts) / counts
        if final:
            end = float(times[-1])
        elif len(starts) > 1:  # the last moment may still get readings
            end = float(centres[-2])
        else:
            return 0
        until = int(end / every_s + 1e-9) + 1
        limit = self._config.max_rows
        if until - state.next > (limit + 1) * self._window.step + self._window.length:
            raise self._kept.too_many()
        moments = np.arange(state.next, until) * every_s
        self._longest = max(self._longest, len(moments))
        if not len(moments):
            return 0
        latest = np.searchsorted(times, moments + 1e-9 * every_s, "right") - 1
        means = np.add.reduceat(run.values, starts, axis=0) / counts[:, None]
        values = np.empty((len(moments), means.shape[1]))
        for column, is_whole in enumerate(self._whole_numbers.tolist()):
            values[:, column] = (
                run.values[latest, column]
                if is_whole
                else np.interp(moments, centres, means[:, column])
            )
        made = self._windows(values, run.chosen(latest), 0)
        state.next += made
        before = int(np.searchsorted(nearest[starts], state.next)) - 1
        return int(starts[max(0, before)])

    def _windows(self, values: F64, readings: Readings, first: int) -> int:
        """Cuts windows of readings from `first` on; returns how far on the next one begins."""
        needed = self._window.length + self._window.ahead
        starts = np.arange(first, len(values) - needed + 1, self._window.step)
        self._kept.add(values, readings, starts)
        return len(starts) * self._window.step

    def table(self, group_names: tuple[str, ...], notes: Sequence[str]) -> Table:
        """Returns the windows of all readings.

        Raises:
            EmptyDataError: no run of readings is long enough for a window.
            DataError: see `add`.
        """
        self._cut(final=True)
        self._tell()
        if not len(self._kept):
            raise self._none()
        note = (
            f"{counted(len(self._kept), 'window')} of {counted(self._window.length, 'reading')} "
            f"from {counted(self._readings, 'row')}"
        )
        log.info("%s: %s", self._path, note, extra={"event": "windows"})
        return replace(self._kept.table(group_names, (*notes, note)), readings=self._readings)

    def _tell(self) -> None:
        if self._lost:
            log.warning(
                "%s: %d of %d rows dropped: no reading, NaN or infinity",
                self._path, self._lost, self._readings,
                extra={"event": "rows_dropped", "rows": self._lost},
            )  # fmt: skip
        if self._late:
            log.info(
                "%s: rows are not in the order of time: put in order", self._path,
                extra={"event": "rows_sorted"},
            )  # fmt: skip

    def _none(self) -> EmptyDataError:
        window = self._window
        pause, apart = "", f", readings are {self._apart_s:g} s apart" if self._apart_s else ""
        if self._config.time is not None and window.longest_pause_s:
            pause = f" without a pause of more than {window.longest_pause_s:g} s"
        return EmptyDataError(
            f"{self._path}: no window of {window.length} readings: the longest run{pause} has "
            f"{self._longest}{apart}; see window.length and window.gap_s"
        )

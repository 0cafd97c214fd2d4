"""Settings of a data file: how its text is written, what its times mean, how windows are cut."""

from __future__ import annotations

from codecs import lookup
from math import isfinite
from typing import Literal

import msgspec

Separator = Literal["auto", ",", ";", "|", "tab"]
Decimal = Literal["auto", ".", ","]
LabelRule = Literal["last", "majority", "mean", "only"]

#: Seconds in which each unit of an epoch counts.
EPOCH_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


class CsvConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Dialect of a .csv file; what is `auto` is found by looking, and said.

    Attributes:
        separator: between cells; `tab` is a tabulator.
        decimal: `,` reads 20,5 as 20.5.
        thousands: between groups of three digits, such as `.` in 1.234,5; empty: none.
        comment: lines that begin with it are passed over; empty: none.
        missing: further words that mean "no reading".
        encoding: of the text, as Python calls it: utf-8, cp1252, latin-1 ...
    """

    separator: Separator = "auto"
    decimal: Decimal = "auto"
    thousands: Literal["", ".", ",", "'", " "] = ""
    comment: str = "#"
    missing: tuple[str, ...] = ()
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.thousands and self.thousands == self.decimal:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}")
        if self.decimal == self.separator == ",":
            raise ValueError("decimal and separator are both ','")
        try:
            lookup(self.encoding)
        except LookupError as error:
            raise ValueError(f"encoding {self.encoding!r} is unknown; utf-8, cp1252 ...") from error


class TimeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The column that says when a row was recorded: it orders the rows.

    Attributes:
        column: name of the column (.csv, SQLite).
        format: `auto` takes ISO 8601, day.month.year and numbers since 1970 (their size says in
            which unit); `s`, `ms`, `us` and `ns` fix that unit; anything else is a pattern of
            Python's `strptime`, such as `%d/%m/%Y %H:%M`.
        zone: of times that name none, and of the features `time.hour` ...: `Europe/Berlin`, `UTC`.
    """

    column: str
    format: str = "auto"
    zone: str = "UTC"

    def __post_init__(self) -> None:
        known = ("auto", "iso", *EPOCH_UNITS)
        if self.format not in known and "%" not in self.format:
            raise ValueError(
                f"format {self.format!r} is none of {', '.join(known)}, and no pattern such as "
                "%d/%m/%Y %H:%M"
            )
        if self.zone != "UTC":
            from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # seldom needed

            try:
                ZoneInfo(self.zone)
            except (ZoneInfoNotFoundError, ValueError, OSError) as error:
                raise ValueError(
                    f"zone {self.zone!r} is not known here; names are like Europe/Berlin "
                    "(apt install tzdata brings them)"
                ) from error


class WindowConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Windows of readings, of which each is one row of the model.

    Attributes:
        length: readings in a window.
        every: seconds between readings; they are interpolated linearly at this rate, after those of
            one interval were averaged. 0 takes the rows as they are.
        stride: readings from the start of a window to the next one's; 0: `length`, no overlap.
        columns: of the model's only input, one or more for each reading; else those of `inputs`.
        gap_s: a longer pause between two readings ends a window; 0: 2.5 times `every`, and none for
            rows as they are.
        label: of a window, from its rows' targets: the `last`; the `majority` of classes, the later
            of two that are as many; the `mean` of numbers; `only` leaves out windows of several
            classes.
        ahead: the label is that of so many readings after the window's last (a forecast).
    """

    length: int
    every: float = 0.0
    stride: int = 0
    columns: tuple[str, ...] = ()
    gap_s: float = 0.0
    label: LabelRule = "last"
    ahead: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("length", self.length, 1),
            ("stride", self.stride, 0),
            ("ahead", self.ahead, 0),
            ("every", self.every, 0),
            ("gap_s", self.gap_s, 0),
        ):
            if not least <= value <= 1e9 or not isfinite(value):
                raise ValueError(f"{name} must be {least} to 10^9, got {value}")
        if self.ahead and self.label != "last":
            raise ValueError(f"ahead takes one reading's label: label {self.label} needs ahead: 0")

    @property
    def step(self) -> int:
        """Readings from one window's start to the next one's."""
        return self.stride or self.length

    @property
    def longest_pause_s(self) -> float:
        """Seconds between two readings of one window at most; 0: as long as they like."""
        return self.gap_s or 2.5 * self.every

"""Cells of a data file: from what is written in one to a number or a class."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isnan, nan

from fedge.yaml_config import as_yaml
from models.package.spec import ModelSpec, TensorSpec

#: Ways in which loggers, spreadsheets, databases and home automation write "no reading": they
#: count as NaN, so that `nan: refuse | drop` decides about them.
ABSENT = frozenset(
    {
        *("", "-", "--", "?", "na", "n/a", "n.a.", "nan", "null", "nil", "none", "\\n"),
        *("unavailable", "unknown", "undefined", "missing", "no data"),
        *("#n/a", "#na", "#null!", "#num!", "#value!", "#div/0!", "#ref!", "#name?"),
    }
)
_SHOWN_CLASSES = 12
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?|\d{1,2}[./]\d{1,2}[./]\d{4}( .*)?")
_COMMA = re.compile(r"[-+]?\d+,\d+")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
_POINT = re.compile(r"[-+]?\d+\.\d+")
_WORD = re.compile(r"[^\d\s]{1,40}")

Parse = Callable[[object], float]


class Numbers:
    """Parser of numbers as a file writes them.

    Args:
        decimal: "." or ",".
        thousands: between groups of digits; empty: none.
        missing: further words for "no reading".
    """

    def __init__(
        self, decimal: str = ".", thousands: str = "", missing: Sequence[str] = ()
    ) -> None:
        self.decimal = decimal
        self.thousands = thousands
        self._absent = ABSENT.union(word.strip().lower() for word in missing)
        #: Numbers that mean "no reading", such as -9999.
        self.absent_numbers: list[float] = []
        for word in missing:
            with suppress(ValueError):
                self.absent_numbers.append(float(word))

    def parse(self, cell: object) -> float:
        """Returns the number in a cell; NaN: no reading.

        Raises:
            ValueError: there is something else in it.
        """
        if cell is None:
            return nan
        if isinstance(cell, float | int):
            return nan if cell in self.absent_numbers else float(cell)
        if not isinstance(cell, str):
            raise ValueError(cell)
        text = cell.strip()
        if text.lower() in self._absent:
            return nan
        if self.thousands:
            text = text.replace(self.thousands, "")
        if self.decimal == ",":
            if "." in text:
                raise ValueError(text)
            text = text.replace(",", ".")
        if "_" in text:  # Python reads 1_000 as a number, no device writes it
            raise ValueError(text)
        return float(text)

    def advice(self, cell: object) -> str:
        """Returns what to write into the `data` section so that the cell can be read, if known."""
        text = str(cell).strip()
        if _THOUSANDS.fullmatch(text):
            return (
                '; a decimal comma, or thousands? Write `csv: {decimal: ","}` or '
                '`csv: {thousands: ","}` into data'
            )
        if _COMMA.fullmatch(text):
            return '; a decimal comma? Write `csv: {decimal: ","}` into data'
        if self.decimal == "," and _POINT.fullmatch(text):
            return '; a decimal point? Write `csv: {decimal: "."}` into data'
        if _TIME.fullmatch(text):
            return "; a time? Write `time: {column: NAME}` into data, and take `time.hour` as input"
        if _WORD.fullmatch(text):
            setting = as_yaml({"csv": {"missing": [text]}})
            return f"; if it means that there is no reading: `{setting}` in data"
        return ""


def class_parser(tensor: TensorSpec, numbers: Numbers, *, ignore_case: bool = False) -> Parse:
    """Returns the parser of a cell with a class: its index or its name.

    Classes may be called like numbers ("1", "2", "3"): then a number is a name, and no index.

    Args:
        tensor: with class names.
        numbers: parser of the others.
        ignore_case: whether `Walk` is `walk`; the exact name goes before.
    """
    classes = {name: float(index) for index, name in enumerate(tensor.classes)}
    by_number = {}
    for name, index in classes.items():
        with suppress(ValueError):
            if not isnan(value := numbers.parse(name)):
                by_number[value] = index
    folded = {name.casefold(): index for name, index in classes.items()} if ignore_case else {}

    def parse(cell: object) -> float:
        text = cell.strip() if isinstance(cell, str) else cell
        if isinstance(text, str):
            if text in classes:
                return classes[text]
            if text.casefold() in folded:
                return folded[text.casefold()]
        value = numbers.parse(text)
        if not by_number or isnan(value):
            return value
        if value not in by_number:
            raise ValueError(text)
        return by_number[value]

    return parse


def unread_class(cell: object, tensor: TensorSpec, key: str) -> str:
    """Returns in words what a cell is that names no class, and what to do.

    Args:
        cell: that was not understood.
        tensor: with class names.
        key: of the target in the `data` section.
    """
    more = ", …" if len(tensor.classes) > _SHOWN_CLASSES else ""
    names = ", ".join(tensor.classes[:_SHOWN_CLASSES])
    told = f"none of the {len(tensor.classes)} classes ({names}{more})"
    if str(cell).strip().casefold() in {name.casefold() for name in tensor.classes}:
        told += f"; only the case differs: add `ignore_case: true` to {key} in data"
    return told


def unread_number(cell: object, tensor: TensorSpec, spec: ModelSpec, numbers: Numbers) -> str:
    """Returns in words what a cell is that is no number, and what to do."""
    count = spec.class_count(tensor)
    if count:
        return f"no number; the model's classes are 0 to {count - 1}"
    return f"no number{numbers.advice(cell)}"

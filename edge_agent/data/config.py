"""DataConfig: which file holds a device's data, and how its columns become a model's inputs."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Literal

import msgspec

from edge_agent.data.file_settings import CsvConfig, TimeConfig, WindowConfig
from edge_agent.data.split import Split
from fedge.yaml_config import as_yaml

Normalise = Literal["spec", "device", "none"]
NanPolicy = Literal["refuse", "drop"]
Format = Literal["npz", "csv", "sqlite"]

#: By the end of a file's name.
_FORMATS: dict[str, Format] = {
    ".npz": "npz",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
}


class InputSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Source of one input; exactly one of the two keys.

    Attributes:
        array: name of an array in an .npz file, shape (rows, *shape of the input); axes of
            length 1 may be missing or too many.
        columns: names of columns of a .csv file, as many as the input has numbers per row
            (row-major where the input has several axes). A unit in parentheses in the header may
            be left out: `temperature` finds `temperature (degC)`.
    """

    array: str | None = None
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.array is None) == (self.columns is None):
            raise ValueError(
                "give exactly one of array (for .npz) and columns (for .csv and SQLite)"
            )


class TargetSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Source of the target; exactly one of `array` and `column`.

    Attributes:
        array: name of an array in an .npz file, shape (rows, *shape of the target).
        column: name of a column of a .csv file. Class targets may be class indices or names.
        scale: multiplies a float target (1.0e-5 turns USD into units of 100,000 USD).
        offset: is added afterwards (-273.15 turns K into °C).
        ignore_case: whether a class may be written in other case: `Walk` for `walk`.
    """

    array: str | None = None
    column: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    ignore_case: bool = False

    def __post_init__(self) -> None:
        if (self.array is None) == (self.column is None):
            raise ValueError(
                "give exactly one of array (for .npz) and column (for .csv and SQLite)"
            )
        if not isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"scale must be a finite number other than 0, got {self.scale}")
        if not isfinite(self.offset):
            raise ValueError(f"offset must be a finite number, got {self.offset}")


class WeightSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Source of the weight of each row; exactly one of the two keys.

    Attributes:
        array: name of an array in an .npz file, shape (rows,).
        column: name of a column of a .csv file.
    """

    array: str | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        if (self.array is None) == (self.column is None):
            raise ValueError(
                "give exactly one of array (for .npz) and column (for .csv and SQLite)"
            )


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `data:` section of an agent's configuration.

    Attributes:
        path: an .npz, .csv or SQLite file, relative to the configuration file, or a pattern of
            many of one kind (`records/*.csv`), which are read in the order of their names. The
            order of rows is the order of time, unless `time` says otherwise.
        table: of an SQLite file, read in the order of its rows.
        query: instead of `table`, a SELECT of its columns.
        csv: how a .csv file is written.
        time: the column that says when a row was recorded.
        window: how readings become windows; absent: each row is one row of the model.
        inputs: from the name of a model input to its source. An input that is not named takes the
            array of its own name (.npz) or the columns named like its features (.csv).
        target: source of the target; absent: the array `y` (.npz only). A model that needs no
            target (an autoencoder) has none.
        targets: of a model with several outputs: from the name of each target (`target_<output>`)
            to its source; absent: arrays of these names (.npz only).
        weight: what each row counts, 0 or more; absent: every row counts 1.
        group: array or column, or several, inside whose equal values rows belong together in time,
            such as `recording`: each group is split on its own. Absent: all rows are one group.
        test_fraction: share of each group held out for evaluation. 0 holds nothing out; 1 holds
            everything out (a device that only evaluates). Below 1, each group keeps at least one
            row for training.
        split: which rows of a group are held out: `time`, its latest; `random`, some of them;
            `stratified`, some of each class. The latter two measure too well where neighbouring
            rows are alike.
        normalise: `spec` applies mean and std of the model's spec where it has them; `device`
            measures both on the training part at first use and keeps them for good; `none` leaves
            the numbers alone.
        nan: what to do with rows that hold NaN, infinity or what no sensor means (see
            `edge_agent.data.faults`): `refuse` the file, or `drop` the rows. NaN in an input whose
            spec says what stands for a missing value is none of these.
        max_rows: a file with more rows is refused before it fills the memory.
    """

    path: str
    table: str = ""
    query: str = ""
    csv: CsvConfig = CsvConfig()
    time: TimeConfig | None = None
    window: WindowConfig | None = None
    inputs: dict[str, InputSource] = {}
    target: TargetSource | None = None
    targets: dict[str, TargetSource] = {}
    weight: WeightSource | None = None
    group: str | tuple[str, ...] | None = None
    test_fraction: float = 0.2
    split: Split = "time"
    normalise: Normalise = "spec"
    nan: NanPolicy = "refuse"
    max_rows: int = 1_000_000

    def __post_init__(self) -> None:
        if not self.format:
            raise ValueError(
                f"path must end in {', '.join(_FORMATS)}, got {self.path!r}; a folder of files is "
                "a pattern: `path: folder/*.csv`"
            )
        if not 0 <= self.test_fraction <= 1:
            raise ValueError(f"test_fraction must be 0 to 1, got {self.test_fraction}")
        if isinstance(self.group, tuple) and not self.group:
            raise ValueError("group is an empty list: name columns, or leave it out")
        if self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {self.max_rows}")
        self._check_format()
        self._check_sources()

    @property
    def format(self) -> Format | Literal[""]:
        """`npz`, `csv` or `sqlite`; empty: none of these."""
        return _FORMATS.get(Path(self.path).suffix.lower(), "")

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the arrays or columns that tell groups apart; empty: all rows are one."""
        if self.group is None:
            return ()
        return (self.group,) if isinstance(self.group, str) else self.group

    @property
    def target_sources(self) -> dict[str, TargetSource]:
        """Source of each target by its name in the model's spec, as far as configured."""
        return {**({"target": self.target} if self.target else {}), **self.targets}

    def _check_format(self) -> None:
        if (self.table or self.query) and self.format != "sqlite":
            raise ValueError("table and query are for SQLite files (.sqlite, .db)")
        if self.table and self.query:
            raise ValueError("give table or query, not both")
        if self.csv != CsvConfig() and self.format != "csv":
            raise ValueError("csv says how a .csv file is written; this one is none")
        if self.format == "npz" and (self.time or self.window):
            key = "time" if self.time else "window"
            raise ValueError(
                f"{key} is for .csv and SQLite files: an .npz file holds finished rows"
            )
        if self.window and not self.time and (self.window.every or self.window.gap_s):
            raise ValueError(
                "window: every and gap_s need times: name their column, `time: {column: NAME}`"
            )

    def _check_sources(self) -> None:
        kind = Path(self.path).suffix.lower()
        right = "array" if self.format == "npz" else "columns"
        name_of = "NAME" if self.format == "npz" else ["NAME", "NAME"]
        for name, source in self.inputs.items():
            if getattr(source, right) is None:
                example = as_yaml({"inputs": {name: {right: name_of}}})
                raise ValueError(f"inputs.{name}: a {kind} file needs the key {right}: `{example}`")
        right = right.removesuffix("s")
        singles: dict[str, TargetSource | WeightSource] = {
            **({"target": self.target} if self.target else {}),
            **{f"targets.{name}": source for name, source in self.targets.items()},
            **({"weight": self.weight} if self.weight else {}),
        }
        for name, single in singles.items():
            if getattr(single, right) is None:
                example = as_yaml({name.removeprefix("targets."): {right: "NAME"}})
                raise ValueError(f"{name}: a {kind} file needs the key {right}: `{example}`")

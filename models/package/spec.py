"""ModelSpec: inputs, targets, outputs and layout of a model.

Stored as `spec.json` in a model package. Decoding validates: every decoded spec is consistent.
"""

from __future__ import annotations

import re
from functools import cached_property
from math import isfinite, prod
from typing import Literal

import msgspec

from fedge.errors import ModelError
from learning.vector.metrics import MetricSpec
from learning.vector.parameters import MAX_PARAMETERS, Layout

Dtype = Literal["float32", "int32"]

#: Names used by the signatures themselves: no input or metric may have them.
RESERVED_NAMES = frozenset(
    {"theta", "frozen", "target", "weight", "loss", "gradient", "loss_sum", "weight_sum"}
)

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

#: Each size adds three signatures to the file.
MAX_BATCH_SIZES = 4
_MAX_SPEC_BYTES = 1 << 20


#: Before the names of metrics in reports: of agents that only measure, of the coordinator's rows.
_METRIC_PREFIXES = ("unseen_", "central_")


def bare_metric(name: str) -> str:
    """Returns the name of a metric in its spec: `mae` for `unseen_mae`."""
    for prefix in _METRIC_PREFIXES:
        name = name.removeprefix(prefix)
    return name


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input, target or output, described per row, without the batch axis.

    Attributes:
        name: name in the program's signatures.
        shape: shape of one row; () is one number per row.
        dtype: float32 or int32.
        features: a name for each element of the last axis (or for the only number); or for every
            number of a row, in row-major order, as in the columns of a .csv file.
        units: the unit of each feature, or one for all.
        mean: subtracted from each feature of the raw data, when given. Of a target: what the model
            learns is (raw - mean) / std, and predictions are turned back.
        std: divides each feature after the mean was subtracted, when given.
        classes: names of the classes, for an int32 target.
        missing: for a float32 input: the number that replaces NaN in the data, after mean and std;
            None: NaN is an error.
    """

    name: str = msgspec.field()
    shape: tuple[int, ...] = ()
    dtype: Dtype = "float32"
    features: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    missing: float | None = None

    def __post_init__(self) -> None:
        if not (self.name.isidentifier() and self.name.isascii() and len(self.name) <= 64):
            raise ValueError(f"tensor name {self.name!r} must be a plain identifier")
        if any(side < 1 for side in self.shape) or prod(self.shape) > 100_000_000:
            raise ValueError(
                f"tensor {self.name!r} has shape {self.shape}: sides must be at least 1, and 100 "
                "million numbers at most"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"tensor {self.name!r}: mean and std must be given together")
        self._check_lengths()
        if not all(map(isfinite, (*self.mean, *self.std))) or any(s <= 0 for s in self.std):
            raise ValueError(f"tensor {self.name!r}: means must be finite, stds finite and above 0")
        if not all(self.units):
            raise ValueError(f"tensor {self.name!r}: a unit is empty; '1' stands for none")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"tensor {self.name!r}: class names must differ: {self.classes}")
        if self.missing is not None and not (self.dtype == "float32" and isfinite(self.missing)):
            raise ValueError(
                f"tensor {self.name!r}: missing must be a finite number and the dtype float32"
            )

    def _check_lengths(self) -> None:
        last = self.shape[-1] if self.shape else 1
        for what, given, allowed in (
            ("names of features", self.features, {last, prod(self.shape)}),
            ("units", self.units, {1, last}),
            ("means", self.mean, {1, last}),
        ):
            if given and len(given) not in allowed:
                raise ValueError(
                    f"tensor {self.name!r}: {len(given)} {what} for {last} features, expected "
                    f"{' or '.join(map(str, sorted(allowed)))}"
                )


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Inputs, outputs and layout of a program.

    Attributes:
        name: name of the model; files are named after it.
        inputs: in the order of the signatures.
        targets: float32 for regression, int32 class indices for classification.
            A single target is named `target`; with several outputs, each is named
            `target_<output>`. Empty when the loss needs none: an autoencoder's target is its input.
        outputs: tensors that `predict` returns.
        loss: Keras's name of the loss, for people; the program computes the loss.
        metrics: the program returns each as sums over rows, which add across agents.
        batch_size: rows of one program call.
        layout: layout of θ, the shared vector.
        source: source of architecture or task (paper, section), for people.
        format: version of this structure.
        stochastic: True when `gradient` takes a `seed` (int32) for its random numbers (dropout).
        personal: layout of the personal part, which each device trains and never sends; the program
            takes it after θ in the same vector.
        frozen: how many numbers frozen layers have; the package holds them, and the program takes
            them as `frozen`.
        more_batch_sizes: further batch sizes, each with its own signatures (`gradient_<rows>`,
            ...). Absent from the JSON of most specs.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    targets: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    loss: str
    metrics: tuple[MetricSpec, ...]
    batch_size: int
    layout: Layout
    source: str = ""
    format: Literal[1] = 1
    stochastic: bool = False
    personal: Layout | None = None
    frozen: int = 0
    more_batch_sizes: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if not _MODEL_NAME.fullmatch(self.name):
            raise ValueError(
                f"model name {self.name[:80]!r} must be 1 to 64 of the characters A-Z a-z 0-9 _ . -"
                ", the first a letter, a digit or _"
            )
        if not self.inputs or not self.outputs:
            raise ValueError("a spec needs at least one input and one output")
        self._check_names()
        self._check_classes()
        for target in self.targets:
            if target.missing is not None or (target.mean and target.dtype != "float32"):
                raise ValueError(
                    f"{target.name}: targets have no missing, and classes neither mean nor std"
                )
        for size in self.batch_sizes:
            if not 1 <= size <= 65_536:
                raise ValueError(f"batch_size {size} is outside 1 to 65,536")
        if len(self.batch_sizes) > MAX_BATCH_SIZES:
            raise ValueError(f"{len(self.batch_sizes)} batch sizes, limit {MAX_BATCH_SIZES}")
        if len(set(self.batch_sizes)) != len(self.batch_sizes):
            raise ValueError(f"batch sizes must differ: {list(self.batch_sizes)}")
        if not 0 <= self.frozen <= MAX_PARAMETERS:
            raise ValueError(f"frozen is {self.frozen}, limit 0 to {MAX_PARAMETERS}")

    def _check_names(self) -> None:
        wanted = ["target"] if len(self.targets) == 1 else []
        if len(self.targets) > 1:
            wanted = [f"target_{output.name}" for output in self.outputs]
        found = [target.name for target in self.targets]
        if found != wanted:
            raise ValueError(f"targets must be named {wanted}, not {found}")
        names = [t.name for t in self.inputs] + [m.name for m in self.metrics]
        names += [name for name in found if name != "target"]
        if len(set(names)) != len(names) or RESERVED_NAMES.intersection(names):
            raise ValueError(
                f"input and metric names must differ from each other and from "
                f"{sorted(RESERVED_NAMES)}: {names}"
            )
        if self.stochastic and "seed" in names:
            raise ValueError("'seed' is reserved in a stochastic model: name the input differently")

    def _check_classes(self) -> None:
        for target in self.targets:
            count = self.class_count(target)
            if target.classes and target.dtype == "int32" and len(target.classes) != count:
                raise ValueError(
                    f"{len(target.classes)} class names for the {count} classes of {target.name!r}"
                )

    def class_count(self, tensor: TensorSpec) -> int:
        """Returns the number of classes of an int32 column; 0 if it holds no classes.

        A target has one class per number that the output has for each target element; two classes
        if that is one number (binary cross-entropy) or the target compares a pair of embeddings.
        """
        if tensor.dtype != "int32":
            return 0
        if tensor not in self.targets:
            return len(tensor.classes)
        shape = self._output_shape(tensor)
        return max(2, shape[-1]) if len(shape) == len(tensor.shape) + 1 else 2

    def class_names(self, tensor: TensorSpec) -> tuple[str, ...]:
        """Returns the classes of a column by name, else by number; empty if it holds no classes.

        A float32 target with a name for each of its numbers (one-hot) holds classes too.
        """
        if tensor.classes and (tensor.dtype == "int32" or tensor.shape == (len(tensor.classes),)):
            return tensor.classes
        return tuple(map(str, range(self.class_count(tensor))))

    def metric_classes(self, metric: str) -> tuple[str, ...]:
        """Returns the classes that a metric tells apart (`confusion`, `unseen_kind_confusion`)."""
        output = bare_metric(metric).rpartition("_")[0]
        wanted = f"target_{output}" if len(self.targets) > 1 else "target"
        found = next((target for target in self.targets if target.name == wanted), None)
        return () if found is None else self.class_names(found)

    def _output_shape(self, target: TensorSpec) -> tuple[int, ...]:
        """Returns the shape that a target is compared with; () for several embeddings."""
        if len(self.targets) > 1:
            return self.outputs[self.targets.index(target)].shape
        return self.outputs[0].shape if len(self.outputs) == 1 else ()

    @property
    def columns(self) -> tuple[TensorSpec, ...]:
        """Inputs and targets: all columns of a data file."""
        return (*self.inputs, *self.targets)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """All batch sizes that the program has signatures for; the main one first."""
        more = self.more_batch_sizes
        return (self.batch_size, *(() if isinstance(more, msgspec.UnsetType) else more))

    @cached_property
    def size(self) -> int:
        """P, the number of shared parameters."""
        return self.layout.size

    @cached_property
    def whole_size(self) -> int:
        """Length of the vector that the program takes: θ, then the personal part."""
        return self.size + (self.personal.size if self.personal else 0)

    def step_problem(self, rows: int) -> str:
        """Returns why a step on so many rows would not be the model's; empty if it is.

        BatchNormalization takes mean and variance over the rows of a step; a program sees those of
        one call.
        """
        limit = max(self.batch_sizes)
        if not self.tracked or rows <= limit:
            return ""
        return (
            f"{self.name} has BatchNormalization, whose mean and variance are those of one call of "
            f"the program, {limit:,} rows at most, and a step of {rows:,} rows takes several: "
            f"training.batch_size must be 1 to {limit:,}, or the model exported with --batch-size "
            f"{rows}"
        )

    @cached_property
    def tracked(self) -> tuple[slice, ...]:
        """Slices of the program's vector that are averaged, not stepped (see `ParameterSpec`)."""
        personal = self.personal.tracked if self.personal else ()
        moved = (slice(self.size + part.start, self.size + part.stop) for part in personal)
        return (*self.layout.tracked, *moved)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the layout; an update with another fingerprint is rejected."""
        return self.layout.fingerprint

    def to_json(self) -> bytes:
        """Returns indented JSON: the same bytes for the same spec."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def from_json(cls, data: bytes, origin: str = "spec.json") -> ModelSpec:
        """Decodes a spec from JSON.

        Raises:
            ModelError: not a valid spec; the message begins with `origin` and names the key.
        """
        if len(data) > _MAX_SPEC_BYTES:
            raise ModelError(f"{origin}: {len(data)} bytes, limit {_MAX_SPEC_BYTES}")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"{origin}: {error}") from error

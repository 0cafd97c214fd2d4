"""Run a program on whichever TFLite interpreter the device has.

A program's signatures are pure functions of θ (`gradient`, `evaluate`, `predict`) for a fixed batch
size, or for each of several; `Program` takes any number of rows: it cuts them into batches and
masks padding with weight 0.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import ModelError, TrainingError, one_line
from learning.vector.metrics import Sums, add_arrays, as_totals
from learning.vector.parameters import F32, F64
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.interpreters import find_runtime

log = logging.getLogger(__name__)

Array = NDArray[Any]
#: The signature behind a program's main subgraph (number 0).
MAIN_SIGNATURE = "gradient"
#: An interpreter's words of an operator that failed, one behind the other without a space.
_FAILURE = re.compile(r"\s*(.+?)\.?Node number \d+ \((\w+)\) failed to \w+\.?", re.DOTALL)
#: Rows of data: one array per column of a spec, and perhaps `weight`; all equally long.
Rows = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Gradient:
    """Gradient of the weighted mean loss, and the sums on the way.

    Attributes:
        vector: float32, like the program's vector. Where the layout says `tracked` it holds the
            change of a statistic, before - after.
        loss: Σ weight · loss.
        weight: Σ weight.
        totals: sums of each metric, in its shape: as arrays, since a trainer adds them up at every
            step, and a histogram of 398 numbers takes 20 µs as a tuple.
    """

    vector: F32
    loss: float
    weight: float
    totals: Mapping[str, Array]

    @property
    def sums(self) -> Sums:
        """Loss, weight and metrics as they are sent."""
        return Sums(self.loss, self.weight, as_totals(self.totals))


def row_count(rows: Rows) -> int:
    """How many rows there are."""
    return len(next(iter(rows.values()), ()))


class Program:
    """A loaded program, checked against its spec before the first step.

    One instance serves one thread at a time.

    Args:
        data: the .tflite file, whole: tflite_runtime does not check what it reads and may crash the
            process on a damaged one. What came over the network was compared with its digest.
        spec: what the program must fit.
        frozen: float32, shape (spec.frozen,): numbers of frozen layers (`ModelPackage.frozen`).
        runtime: one of `models.runtime.interpreters.RUNTIMES`; None takes the first installed.
        threads: of the interpreter.

    Raises:
        ModelError: no interpreter, not a TFLite file, or the program does not fit its spec (names
            the signature and the tensor).
    """

    def __init__(
        self,
        data: bytes,
        spec: ModelSpec,
        *,
        frozen: F32 | None = None,
        runtime: str | None = None,
        threads: int = 1,
    ) -> None:
        interpreter_class, self.runtime = find_runtime(runtime)
        self.spec = spec
        count = 0 if frozen is None else frozen.size
        if count != spec.frozen:
            raise ModelError(f"{spec.name} has {spec.frozen} frozen numbers, {count} are given")
        try:
            self._interpreter = interpreter_class(model_content=data, num_threads=threads)
            # Type and order of what the runtimes raise here is not documented: a malformed file
            # gives ValueError or RuntimeError, a missing operator RuntimeError, and either may ask
            # for more memory than there is.
            signatures = self._interpreter.get_signature_list()
            self._check_names(signatures)
            # tflite-runtime puts its fast kernels (XNNPACK) in place here or never: calling
            # signatures alone runs without them. 1.2 to 1.5 times the speed for the same numbers.
            self._interpreter.allocate_tensors()
            self._check_tensors()
            self._train = _MainSubgraph(self._interpreter)
        except (ValueError, RuntimeError, TypeError, MemoryError) as error:
            raise ModelError(
                f"{self.runtime} cannot load the program: {one_line(error)}"
            ) from error
        self._ones = {size: np.ones(size, np.float32) for size in spec.batch_sizes}
        self._constants: dict[str, Array] = {} if frozen is None else {"frozen": frozen}
        log.debug("program of %s runs on %s", spec.name, self.runtime)

    def gradient(self, theta: F32, rows: Rows, *, seed: int = 0) -> Gradient:
        """Gradient of the weighted mean loss over all rows, whatever their number.

        Args:
            theta: float32, shape (spec.whole_size,): θ and the personal part.
            rows: one array of shape (n, *shape) per column of the spec (inputs and targets), and
                `weight`, float32 of shape (n,), unless every row weighs 1.
            seed: of a stochastic model's random numbers: the same seed, the same gradient. Take
                another one for every step. Other models ignore it.

        Raises:
            ModelError: an array does not fit the spec, or their rows differ in number.
            TrainingError: no rows, the weights sum to 0, or the interpreter failed.
        """
        count = self._check(theta, rows, self.spec.columns)
        if count in self._ones and "weight" not in rows:
            return self._whole_batch(theta, rows, count, seed)
        vector = np.zeros(self.spec.whole_size, np.float64)
        totals: dict[str, F64] = {}
        loss_sum = weight_sum = 0.0
        for number, (size, batch) in enumerate(self._batches(rows, count)):
            weight = float(batch["weight"].sum())
            if weight == 0:
                continue  # the program divides by the sum of its weights
            out = self._run("gradient", size, theta, {**batch, **self._seed(seed + number)})
            vector += weight * out["gradient"].astype(np.float64)
            weight_sum += weight
            loss_sum += weight * float(out["loss"])
            add_arrays(totals, self._metrics(out))
        if weight_sum == 0:
            raise TrainingError("no rows to learn from (none, or all of weight 0)")
        mean = (vector / weight_sum).astype(np.float32)
        return Gradient(mean, loss_sum, weight_sum, totals)

    def evaluate(self, theta: F32, rows: Rows) -> Sums:
        """Sums of loss and metrics over all rows; arguments as for `gradient`."""
        count = self._check(theta, rows, self.spec.columns)
        totals: dict[str, F64] = {}
        loss = weight = 0.0
        for size, batch in self._batches(rows, count):
            out = self._run("evaluate", size, theta, batch)
            loss += float(out["loss_sum"])
            weight += float(out["weight_sum"])
            add_arrays(totals, self._metrics(out))
        return Sums(loss, weight, as_totals(totals))

    def predict(self, theta: F32, rows: Rows) -> dict[str, Array]:
        """One array of shape (n, *shape) per output of the spec; needs the inputs only."""
        count = self._check(theta, rows, self.spec.inputs)
        parts: dict[str, list[Array]] = {output.name: [] for output in self.spec.outputs}
        for start, taken, size in calls(count, self.spec.batch_sizes):
            batch = {t.name: _cut(rows[t.name], t, start, taken, size) for t in self.spec.inputs}
            out = self._run("predict", size, theta, batch)
            for name, part in parts.items():
                part.append(out[name][:taken])
        return {
            output.name: np.concatenate(parts[output.name])
            if count
            else np.empty((0, *output.shape), output.dtype)
            for output in self.spec.outputs
        }

    def _check(self, theta: F32, rows: Rows, columns: Sequence[TensorSpec]) -> int:
        """The number of rows; raises ModelError unless every array fits.

        The interpreters resize themselves to whatever they are given, and some operators then
        return numbers all the same.
        """
        if theta.dtype != np.float32 or theta.shape != (self.spec.whole_size,):
            raise ModelError(
                f"θ is {theta.dtype} of shape {theta.shape}, "
                f"expected float32 of ({self.spec.whole_size},)"
            )
        for tensor in columns:
            if tensor.name not in rows:
                raise ModelError(
                    f"{self.spec.name} needs the array {tensor.name!r}; given: {', '.join(rows)}"
                )
        count = row_count(rows)
        for tensor in columns:
            shape = rows[tensor.name].shape
            if shape != (count, *tensor.shape):
                raise ModelError(
                    f"{tensor.name!r} has shape {shape}, expected {(count, *tensor.shape)}"
                )
        if "weight" in rows and rows["weight"].shape != (count,):
            raise ModelError(f"weight has shape {rows['weight'].shape}, expected ({count},)")
        return count

    def _seed(self, seed: int) -> dict[str, Array]:
        """The program's input of that name, where it has one: the lowest 32 bits."""
        if not self.spec.stochastic:
            return {}
        return {"seed": np.array(seed % 2**32, np.uint32).view(np.int32)}

    def _whole_batch(self, theta: F32, rows: Rows, size: int, seed: int) -> Gradient:
        # The common case of training with one of the program's batch sizes: no padding, no sums.
        weight = float(size)
        batch = {t.name: np.ascontiguousarray(rows[t.name], t.dtype) for t in self.spec.columns}
        batch["weight"] = self._ones[size]
        out = self._run("gradient", size, theta, {**batch, **self._seed(seed)})
        return Gradient(out["gradient"], float(out["loss"]) * weight, weight, self._metrics(out))

    def _metrics(self, out: Mapping[str, Array]) -> dict[str, Array]:
        return {metric.name: out[metric.name] for metric in self.spec.metrics}

    def _batches(self, rows: Rows, count: int) -> Iterator[tuple[int, dict[str, Array]]]:
        for start, taken, size in calls(count, self.spec.batch_sizes):
            batch = {t.name: _cut(rows[t.name], t, start, taken, size) for t in self.spec.columns}
            weights = np.zeros(size, np.float32)
            given = rows.get("weight")
            weights[:taken] = 1.0 if given is None else given[start : start + taken]
            batch["weight"] = weights
            yield size, batch

    def _run(self, kind: str, size: int, theta: F32, batch: dict[str, Array]) -> dict[str, Array]:
        signature = signature_name(kind, size, self.spec)
        arrays = {"theta": theta, **self._constants, **batch}
        try:
            if signature == MAIN_SIGNATURE:
                return self._train(arrays)
            # Made anew and dropped: as long as there is a runner, `_train` is refused.
            out: dict[str, Array] = self._interpreter.get_signature_runner(signature)(**arrays)
        except (ValueError, RuntimeError, MemoryError) as error:
            why = f"{self.runtime}: {signature} failed: {_latest(error)}"
            # Without the frames that hold the runner: somebody may keep the error.
            raise TrainingError(why) from error.with_traceback(None)
        return out

    def _check_names(self, signatures: dict[str, Any]) -> None:
        missing = [name for name in expected_signatures(self.spec) if name not in signatures]
        if missing:
            raise ModelError(
                f"the program lacks the signature {missing[0]!r}; it has: {', '.join(signatures)}"
            )

    def _check_tensors(self) -> None:
        for name, (inputs, outputs) in expected_signatures(self.spec).items():
            runner = self._interpreter.get_signature_runner(name)
            _compare(f"{name} input", inputs, runner.get_input_details())
            _compare(f"{name} output", outputs, runner.get_output_details())


class _MainSubgraph:
    """The program's main subgraph, which is that of its first gradient.

    A signature's runner resizes every input and plans memory again at each call: 3 to 4 µs of a
    small model's 10. The interpreter's own methods do not; they know the main subgraph only, and
    refuse to run while a runner exists, which they take for a view of their memory.

    Args:
        interpreter: its memory is planned.

    Raises:
        ModelError: the main subgraph is another signature's.
    """

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        runner = interpreter.get_signature_runner(MAIN_SIGNATURE)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        # No other signature has an output of the gradient's shape at that place.
        if _places(outputs.values()) != _places(interpreter.get_output_details()):
            raise ModelError(f"the program's main subgraph is not that of {MAIN_SIGNATURE!r}")
        self._inputs = {name: int(tensor["index"]) for name, tensor in inputs.items()}
        self._outputs = {name: int(tensor["index"]) for name, tensor in outputs.items()}

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, for an array of the right shape and dtype for each input."""
        for name, array in arrays.items():
            self._interpreter.set_tensor(self._inputs[name], array)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(at) for name, at in self._outputs.items()}


def _latest(error: Exception) -> str:
    """What an interpreter says went wrong: the last of what it has said since it was made."""
    found = _FAILURE.findall(str(error))
    return "{} (in {})".format(*found[-1]) if found else one_line(error)


def _places(details: Iterable[dict[str, Any]]) -> set[tuple[int, tuple[int, ...]]]:
    return {(int(d["index"]), tuple(int(side) for side in d["shape"])) for d in details}


def calls(rows: int, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """How many rows are cut into calls: (first row, rows, size of the call).

    The largest size that the rows fill; for what is left the smallest that covers it, unless most
    of that would be padding and a smaller one is there.
    """
    start = 0
    while start < rows:
        left = rows - start
        covers = min((size for size in sizes if size >= left), default=0)
        fits = max((size for size in sizes if size <= left), default=0)
        size = covers if covers and (covers < 2 * left or not fits) else fits
        yield start, min(size, left), size
        start += size


def signature_name(kind: str, size: int, spec: ModelSpec) -> str:
    """Of the `kind` (gradient, evaluate, predict) for calls of so many rows."""
    return kind if size == spec.batch_size else f"{kind}_{size}"


_Expected = dict[str, tuple[tuple[int, ...], str]]


def expected_signatures(spec: ModelSpec) -> dict[str, tuple[_Expected, _Expected]]:
    """Inputs and outputs of each signature as {name: (shape, dtype)}, batch axis included."""
    return {
        signature_name(kind, size, spec): tensors
        for size in spec.batch_sizes
        for kind, tensors in _signatures_of(spec, size).items()
    }


def _signatures_of(spec: ModelSpec, rows: int) -> dict[str, tuple[_Expected, _Expected]]:
    theta: _Expected = {"theta": ((spec.whole_size,), "float32")}
    if spec.frozen:
        theta["frozen"] = ((spec.frozen,), "float32")
    inputs: _Expected = {t.name: ((rows, *t.shape), t.dtype) for t in spec.inputs}
    label: _Expected = {t.name: ((rows, *t.shape), t.dtype) for t in spec.targets}
    label["weight"] = ((rows,), "float32")
    metrics: _Expected = {m.name: (m.shape, "float32") for m in spec.metrics}
    loss: _Expected = {"loss": ((), "float32"), "gradient": ((spec.whole_size,), "float32")}
    sums: _Expected = {"loss_sum": ((), "float32"), "weight_sum": ((), "float32")}
    outputs: _Expected = {t.name: ((rows, *t.shape), t.dtype) for t in spec.outputs}
    seed: _Expected = {"seed": ((), "int32")} if spec.stochastic else {}
    return {
        "gradient": (theta | inputs | label | seed, loss | metrics),
        "evaluate": (theta | inputs | label, sums | metrics),
        "predict": (theta | inputs, outputs),
    }


def _compare(where: str, expected: _Expected, found: dict[str, dict[str, Any]]) -> None:
    if set(expected) != set(found):
        raise ModelError(
            f"the program does not fit its spec: {where}s are {sorted(found)}, "
            f"the spec needs {sorted(expected)}"
        )
    for name, (shape, dtype) in expected.items():
        found_shape = tuple(int(side) for side in found[name]["shape"])
        found_dtype = np.dtype(found[name]["dtype"]).name
        if (found_shape, found_dtype) != (shape, dtype):
            raise ModelError(
                f"the program does not fit its spec: {where} {name!r} is {found_dtype} "
                f"{found_shape}, the spec says {dtype} {shape}"
            )


def _cut(array: Array, tensor: TensorSpec, start: int, count: int, size: int) -> Array:
    """`count` rows from `start` on, with copies of the first behind them up to `size`.

    Copies and no zeros: padding weighs 0, but 0 times what a layer makes of a row of zeros (a norm,
    the mean of what a mask leaves) may be NaN.
    """
    part = array[start : start + count]
    if count == size:
        return np.ascontiguousarray(part, tensor.dtype)
    padded = np.empty((size, *tensor.shape), tensor.dtype)
    padded[:count] = part
    padded[count:] = padded[0]
    return padded

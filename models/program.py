"""Run a program on whichever TFLite interpreter the device has.

A program's signatures are pure functions of θ (`gradient`, `evaluate`, `predict`) for a fixed batch
size; `Program` takes any number of rows: it cuts them into batches and masks the padding of the
last one with weight 0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError, TrainingError
from models.parameters import F32
from models.runtimes import find_runtime
from models.spec import ModelSpec, TensorSpec

log = logging.getLogger(__name__)

Array = NDArray[Any]


@dataclass(frozen=True)
class Sums:
    """Weighted sums over rows; sums of several agents add.

    Attributes:
        loss: Σ weight · loss.
        weight: Σ weight.
        metrics: Σ weight · metric, by name.
    """

    loss: float
    weight: float
    metrics: dict[str, float]

    def means(self) -> dict[str, float]:
        """`loss` and every metric divided by the weight (which must not be 0)."""
        return {
            name: value / self.weight
            for name, value in [("loss", self.loss), *self.metrics.items()]
        }


@dataclass(frozen=True, eq=False)
class Gradient:
    """Gradient of the weighted mean loss: float32, shape (P,); and the sums on the way."""

    vector: F32
    sums: Sums


class Program:
    """A loaded program, checked against its spec before the first step.

    One instance serves one thread at a time.

    Args:
        data: the .tflite file, whole: tflite_runtime does not check what it reads and may crash the
            process on a damaged one. What came over the network was compared with its digest.
        spec: what the program must fit.
        runtime: one of `models.runtimes.RUNTIMES`; None takes the first that is installed.
        threads: of the interpreter.

    Raises:
        ModelError: no interpreter, not a TFLite file, or the program does not fit its spec (names
            the signature and the tensor).
    """

    def __init__(
        self, data: bytes, spec: ModelSpec, *, runtime: str | None = None, threads: int = 1
    ) -> None:
        interpreter_class, self.runtime = find_runtime(runtime)
        self.spec = spec
        try:
            self._interpreter = interpreter_class(model_content=data, num_threads=threads)
            # Type and order of what the runtimes raise here is not documented: a malformed file
            # gives ValueError or RuntimeError, a missing operator RuntimeError.
            signatures = self._interpreter.get_signature_list()
            self._check_names(signatures)
            # tflite-runtime puts its fast kernels (XNNPACK) in place here or never: calling
            # signatures alone runs without them. 1.2 to 1.5 times the speed for the same numbers.
            self._interpreter.allocate_tensors()
            self._runners = {
                name: self._interpreter.get_signature_runner(name) for name in _SIGNATURES
            }
            self._check_tensors()
        except (ValueError, RuntimeError, TypeError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ModelError(f"{self.runtime} cannot load the program: {first_line}") from error
        self._paddings = {t.name: _padding(t, spec.batch_size) for t in (*spec.inputs, spec.target)}
        self._weights = np.ones(spec.batch_size, np.float32)
        log.debug("program of %s runs on %s", spec.name, self.runtime)

    def gradient(
        self,
        theta: F32,
        inputs: Mapping[str, Array],
        target: Array,
        weight: F32 | None = None,
        *,
        seed: int = 0,
    ) -> Gradient:
        """Gradient of the weighted mean loss over all rows, whatever their number.

        Args:
            theta: float32, shape (P,).
            inputs: one array of shape (n, *shape) per input of the spec.
            target: shape (n, *shape).
            weight: float32, shape (n,); None weighs every row 1.
            seed: of a stochastic model's random numbers: the same seed, the same gradient. Take
                another one for every step. Other models ignore it.

        Raises:
            ModelError: an array does not fit the spec, or their rows differ in number.
            TrainingError: no rows, the weights sum to 0, or the interpreter failed.
        """
        self._check_arrays(theta, inputs, target, weight)
        if len(target) == self.spec.batch_size and weight is None:
            return self._whole_batch(theta, inputs, target, seed)
        vector = np.zeros(self.spec.size, np.float64)
        loss = weight_sum = 0.0
        metrics = dict.fromkeys(self.spec.metrics, 0.0)
        for number, batch in enumerate(self._batches(inputs, target, weight)):
            rows = float(batch["weight"].sum())
            if rows == 0:
                continue  # the program divides by the sum of its weights
            out = self._run("gradient", theta, {**batch, **self._seed(seed + number)})
            vector += rows * out["gradient"].astype(np.float64)
            loss += rows * float(out["loss"])
            weight_sum += rows
            for name in metrics:
                metrics[name] += float(out[name])
        if weight_sum == 0:
            raise TrainingError("no rows to learn from (none, or all of weight 0)")
        return Gradient((vector / weight_sum).astype(np.float32), Sums(loss, weight_sum, metrics))

    def evaluate(
        self, theta: F32, inputs: Mapping[str, Array], target: Array, weight: F32 | None = None
    ) -> Sums:
        """Sums of loss and metrics over all rows; arguments as for `gradient`."""
        self._check_arrays(theta, inputs, target, weight)
        loss = weight_sum = 0.0
        metrics = dict.fromkeys(self.spec.metrics, 0.0)
        for batch in self._batches(inputs, target, weight):
            out = self._run("evaluate", theta, batch)
            loss += float(out["loss_sum"])
            weight_sum += float(out["weight_sum"])
            for name in metrics:
                metrics[name] += float(out[name])
        return Sums(loss, weight_sum, metrics)

    def predict(self, theta: F32, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One array of shape (n, *shape) per output of the spec."""
        first = self.spec.inputs[0].name
        rows = len(inputs[first]) if first in inputs else 0
        self._check_rows(theta, inputs, rows)
        parts: dict[str, list[Array]] = {output.name: [] for output in self.spec.outputs}
        for start in range(0, rows, self.spec.batch_size):
            count = min(self.spec.batch_size, rows - start)
            batch = {t.name: self._cut(inputs[t.name], t, start, count) for t in self.spec.inputs}
            out = self._run("predict", theta, batch)
            for name, part in parts.items():
                part.append(out[name][:count])
        return {
            output.name: np.concatenate(parts[output.name])
            if rows
            else np.empty((0, *output.shape), output.dtype)
            for output in self.spec.outputs
        }

    def _check_arrays(
        self, theta: F32, inputs: Mapping[str, Array], target: Array, weight: F32 | None
    ) -> None:
        rows = len(target)
        self._check_rows(theta, inputs, rows)
        if target.shape[1:] != self.spec.target.shape:
            raise ModelError(
                f"target has rows of shape {target.shape[1:]}, "
                f"{self.spec.name} takes {self.spec.target.shape}"
            )
        if weight is not None and weight.shape != (rows,):
            raise ModelError(f"weight has shape {weight.shape}, expected ({rows},)")

    def _check_rows(self, theta: F32, inputs: Mapping[str, Array], rows: int) -> None:
        # The interpreters resize themselves to whatever they are given, and some operators then
        # return numbers all the same.
        self.spec.layout.check(theta)
        for tensor in self.spec.inputs:
            if tensor.name not in inputs:
                raise ModelError(
                    f"{self.spec.name} needs the input {tensor.name!r}; given: {', '.join(inputs)}"
                )
            shape = inputs[tensor.name].shape
            if shape != (rows, *tensor.shape):
                raise ModelError(
                    f"input {tensor.name!r} has shape {shape}, expected {(rows, *tensor.shape)}"
                )

    def _seed(self, seed: int) -> dict[str, Array]:
        """The program's input of that name, where it has one: the lowest 32 bits."""
        if not self.spec.stochastic:
            return {}
        return {"seed": np.array(seed % 2**32, np.uint32).view(np.int32)}

    def _whole_batch(
        self, theta: F32, inputs: Mapping[str, Array], target: Array, seed: int
    ) -> Gradient:
        # The common case of training with the program's own batch size: no padding, no adding up.
        rows = float(self.spec.batch_size)
        batch = {t.name: np.ascontiguousarray(inputs[t.name], t.dtype) for t in self.spec.inputs}
        batch["target"] = np.ascontiguousarray(target, self.spec.target.dtype)
        out = self._run("gradient", theta, {**batch, "weight": self._weights, **self._seed(seed)})
        metrics = {name: float(out[name]) for name in self.spec.metrics}
        return Gradient(out["gradient"], Sums(float(out["loss"]) * rows, rows, metrics))

    def _batches(
        self, inputs: Mapping[str, Array], target: Array, weight: F32 | None
    ) -> Iterator[dict[str, Array]]:
        rows, size = len(target), self.spec.batch_size
        for start in range(0, rows, size):
            count = min(size, rows - start)
            batch = {t.name: self._cut(inputs[t.name], t, start, count) for t in self.spec.inputs}
            batch["target"] = self._cut(target, self.spec.target, start, count)
            weights = np.zeros(size, np.float32)
            weights[:count] = 1.0 if weight is None else weight[start : start + count]
            batch["weight"] = weights
            yield batch

    def _cut(self, array: Array, tensor: TensorSpec, start: int, count: int) -> Array:
        part = array[start : start + count]
        if count == self.spec.batch_size:
            return np.ascontiguousarray(part, tensor.dtype)
        padded = self._paddings[tensor.name].copy()
        padded[:count] = part
        return padded

    def _run(self, signature: str, theta: F32, batch: dict[str, Array]) -> dict[str, Array]:
        try:
            out: dict[str, Array] = self._runners[signature](theta=theta, **batch)
        except (ValueError, RuntimeError) as error:
            raise TrainingError(f"{self.runtime}: {signature} failed: {error}") from error
        return out

    def _check_names(self, signatures: dict[str, Any]) -> None:
        missing = [name for name in _SIGNATURES if name not in signatures]
        if missing:
            raise ModelError(
                f"the program lacks the signature {missing[0]!r}; it has: {', '.join(signatures)}"
            )

    def _check_tensors(self) -> None:
        expected = expected_signatures(self.spec)
        for name, runner in self._runners.items():
            inputs, outputs = expected[name]
            _compare(f"{name} input", inputs, runner.get_input_details())
            _compare(f"{name} output", outputs, runner.get_output_details())


_SIGNATURES = ("gradient", "evaluate", "predict")
_Expected = dict[str, tuple[tuple[int, ...], str]]


def expected_signatures(spec: ModelSpec) -> dict[str, tuple[_Expected, _Expected]]:
    """Inputs and outputs of each signature as {name: (shape, dtype)}, batch axis included."""
    rows = spec.batch_size
    theta: _Expected = {"theta": ((spec.size,), "float32")}
    inputs: _Expected = {t.name: ((rows, *t.shape), t.dtype) for t in spec.inputs}
    label: _Expected = {
        "target": ((rows, *spec.target.shape), spec.target.dtype),
        "weight": ((rows,), "float32"),
    }
    metrics: _Expected = dict.fromkeys(spec.metrics, ((), "float32"))
    loss: _Expected = {"loss": ((), "float32"), "gradient": ((spec.size,), "float32")}
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


def _padding(tensor: TensorSpec, rows: int) -> Array:
    return np.zeros((rows, *tensor.shape), tensor.dtype)

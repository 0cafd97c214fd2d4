"""Runs a program on a TFLite interpreter.

A program's signatures (`gradient`, `evaluate`, `predict`) are pure functions of θ for one or more
fixed batch sizes. `Program` takes any number of rows: it cuts them into batches and masks padding
with weight 0.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedge.errors import ModelError, TrainingError, one_line
from learning.vector.metrics import Sums, add_arrays, as_totals
from learning.vector.parameters import F32, F64
from models.package.signatures import (
    MAIN_SIGNATURE,
    TensorTypes,
    expected_signatures,
    signature_name,
)
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.interpreters import announce, find_runtime
from models.runtime.main_subgraph import main_runner
from models.runtime.rows import Array, Rows, cut_rows, plan_calls, row_count

log = logging.getLogger(__name__)

#: An interpreter's message about a failed operator; it concatenates them without a space.
_FAILURE = re.compile(r"\s*(.+?)\.?Node number \d+ \((\w+)\) failed to \w+\.?", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Gradient:
    """Gradient of the weighted mean loss, with the sums of loss and metrics.

    Attributes:
        vector: float32, shape (spec.whole_size,). Where the layout says `tracked` it holds the
            change of a statistic, before - after.
        loss: Σ weight · loss.
        weight: Σ weight.
        totals: sums of each metric, in its shape. Arrays, because a trainer adds them up at every
            step, and converting a histogram of 398 numbers to a tuple takes 20 µs.
    """

    vector: F32
    loss: float
    weight: float
    totals: Mapping[str, Array]

    @property
    def sums(self) -> Sums:
        """Loss, weight and metrics in the form of messages."""
        return Sums(self.loss, self.weight, as_totals(self.totals))


class Program:
    """Program loaded into an interpreter and checked against its spec.

    One instance serves one thread at a time.

    Args:
        data: content of the .tflite file. tflite_runtime does not validate it and may crash the
            process on a damaged file: compare data from the network with its digest first.
        spec: spec that the program must fit.
        frozen: float32, shape (spec.frozen,): numbers of frozen layers (`ModelPackage.frozen`).
        runtime: one of `models.runtime.interpreters.RUNTIMES`; None takes the first installed.
        threads: number of threads of the interpreter.

    Raises:
        ModelError: there is no interpreter, `data` is not a TFLite file, or the program does not
            fit its spec (names the signature and the tensor).
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
        announce(interpreter_class, self.runtime)
        self.spec = spec
        count = 0 if frozen is None else frozen.size
        if count != spec.frozen:
            raise ModelError(f"{spec.name} needs {spec.frozen} frozen numbers, given: {count}")
        try:
            self._interpreter = interpreter_class(model_content=data, num_threads=threads)
            # The runtimes do not document what they raise: ValueError or RuntimeError for a
            # malformed file, RuntimeError for a missing operator, MemoryError for either.
            signatures = self._interpreter.get_signature_list()
            self._check_names(signatures)
            # tflite-runtime installs its fast kernels (XNNPACK) only here, not when signatures are
            # called: 1.2 to 1.5 times the speed for the same numbers.
            self._interpreter.allocate_tensors()
            # Kept: tflite-runtime loses 1.7 kB at every `get_signature_runner`.
            self._runners = {n: self._interpreter.get_signature_runner(n) for n in signatures}
            self._check_tensors()
            main = self._runners[MAIN_SIGNATURE]
            self._runners[MAIN_SIGNATURE] = main_runner(self._interpreter, main)
        except (ValueError, RuntimeError, TypeError, MemoryError) as error:
            raise ModelError(
                f"{self.runtime} cannot load the program: {one_line(error)}"
            ) from error
        self._ones = {size: np.ones(size, np.float32) for size in spec.batch_sizes}
        self._converted = {
            metric.name: metric.sums_of_call for metric in spec.metrics if metric.sums_of_call
        }
        self._constants: dict[str, Array] = {} if frozen is None else {"frozen": frozen}
        log.debug("program of %s runs on %s", spec.name, self.runtime)

    def gradient(self, theta: F32, rows: Rows, *, seed: int = 0) -> Gradient:
        """Returns the gradient of the weighted mean loss over all rows, whatever their number.

        Args:
            theta: float32, shape (spec.whole_size,): θ, then the personal part.
            rows: one array of shape (n, *shape) per column of the spec (inputs and targets), and
                `weight`, float32 of shape (n,), unless every row weighs 1.
            seed: seed of a stochastic model's random numbers: the same seed gives the same
                gradient. Use another seed for every step. Other models ignore it.

        Raises:
            ModelError: an array does not fit the spec, or their rows differ in number.
            TrainingError: there are no rows, the weights sum to 0, the interpreter failed, or
                BatchNormalization needs all rows in one call (`ModelSpec.step_problem`).
        """
        count = self._check(theta, rows, self.spec.columns)
        if problem := self.spec.step_problem(count):
            raise TrainingError(problem)
        if count in self._ones and "weight" not in rows:
            return self._whole_batch(theta, rows, count, seed)
        vector = np.zeros(self.spec.whole_size, np.float64)
        totals: dict[str, F64] = {}
        loss_sum = weight_sum = 0.0
        calls = self._batches(rows, count, in_one=bool(self.spec.tracked))
        for number, (size, batch) in enumerate(calls):
            weight = float(batch["weight"].sum())
            if weight == 0:
                continue  # the program divides by the sum of its weights
            out = self._run("gradient", size, theta, {**batch, **self._seed(seed + number)})
            vector += weight * out["gradient"].astype(np.float64)
            weight_sum += weight
            loss_sum += weight * float(out["loss"])
            add_arrays(totals, self._metrics(out, weight))
        if weight_sum == 0:
            raise TrainingError("no rows to learn from (none, or all of weight 0)")
        mean = (vector / weight_sum).astype(np.float32)
        return Gradient(mean, loss_sum, weight_sum, totals)

    def evaluate(self, theta: F32, rows: Rows) -> Sums:
        """Returns the sums of loss and metrics over all rows; arguments as for `gradient`."""
        count = self._check(theta, rows, self.spec.columns)
        totals: dict[str, F64] = {}
        loss = weight = 0.0
        for size, batch in self._batches(rows, count):
            out = self._run("evaluate", size, theta, batch)
            loss += float(out["loss_sum"])
            weight_of_call = float(out["weight_sum"])
            weight += weight_of_call
            add_arrays(totals, self._metrics(out, weight_of_call))
        return Sums(loss, weight, as_totals(totals))

    def predict(self, theta: F32, rows: Rows) -> dict[str, Array]:
        """Returns one array of shape (n, *shape) per output of the spec; needs the inputs only."""
        count = self._check(theta, rows, self.spec.inputs)
        parts: dict[str, list[Array]] = {output.name: [] for output in self.spec.outputs}
        for start, taken, size in plan_calls(count, self.spec.batch_sizes):
            batch = {
                t.name: cut_rows(rows[t.name], t, start, taken, size) for t in self.spec.inputs
            }
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
        """Returns the number of rows; raises ModelError unless every array fits.

        The interpreters would resize their tensors to any shape, and some operators then return
        wrong numbers without an error.
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
        """Returns the lowest 32 bits as the input `seed`, where the program has that input."""
        if not self.spec.stochastic:
            return {}
        return {"seed": np.array(seed % 2**32, np.uint32).view(np.int32)}

    def _whole_batch(self, theta: F32, rows: Rows, size: int, seed: int) -> Gradient:
        # Common case: training with one of the program's batch sizes needs no padding and no sums.
        weight = float(size)
        batch = {t.name: np.ascontiguousarray(rows[t.name], t.dtype) for t in self.spec.columns}
        batch["weight"] = self._ones[size]
        out = self._run("gradient", size, theta, {**batch, **self._seed(seed)})
        totals = self._metrics(out, weight)
        return Gradient(out["gradient"], float(out["loss"]) * weight, weight, totals)

    def _metrics(self, out: Mapping[str, Array], weight: float) -> dict[str, Array]:
        """Returns the sums of each metric of one call."""
        found = {metric.name: out[metric.name] for metric in self.spec.metrics}
        for name, sums_of_call in self._converted.items():
            found[name] = sums_of_call(found[name], weight)
        return found

    def _batches(
        self, rows: Rows, count: int, *, in_one: bool = False
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        for start, taken, size in plan_calls(count, self.spec.batch_sizes, in_one=in_one):
            batch = {
                t.name: cut_rows(rows[t.name], t, start, taken, size) for t in self.spec.columns
            }
            weights = np.zeros(size, np.float32)
            given = rows.get("weight")
            weights[:taken] = 1.0 if given is None else given[start : start + taken]
            batch["weight"] = weights
            yield size, batch

    def _run(self, kind: str, size: int, theta: F32, batch: dict[str, Array]) -> dict[str, Array]:
        signature = signature_name(kind, size, self.spec)
        arrays = {"theta": theta, **self._constants, **batch}
        try:
            out: dict[str, Array] = self._runners[signature](**arrays)
        except (ValueError, RuntimeError, MemoryError) as error:
            why = f"{self.runtime}: {signature} failed: {_last_failure(error)}"
            raise TrainingError(why) from error
        return out

    def _check_names(self, signatures: dict[str, Any]) -> None:
        missing = [name for name in expected_signatures(self.spec) if name not in signatures]
        if missing:
            raise ModelError(
                f"the program lacks the signature {missing[0]!r}; it has: {', '.join(signatures)}"
            )

    def _check_tensors(self) -> None:
        for name, (inputs, outputs) in expected_signatures(self.spec).items():
            runner = self._runners[name]
            _compare(f"{name} input", inputs, runner.get_input_details())
            _compare(f"{name} output", outputs, runner.get_output_details())


def _last_failure(error: Exception) -> str:
    """Returns the last failure in the message, which holds all since the interpreter was made."""
    found = _FAILURE.findall(str(error))
    return "{} (in {})".format(*found[-1]) if found else one_line(error)


def _compare(where: str, expected: TensorTypes, found: dict[str, dict[str, Any]]) -> None:
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

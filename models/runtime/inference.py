"""Loads and runs released models: one `.tflite` for predicting, with its description beside it.

`fedge model release` writes them; any TFLite interpreter runs them. Inputs and outputs of a
full-integer model are int8; `InferenceModel` converts, so that callers always see float32.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from fedge.errors import ModelError, TrainingError, one_line
from models.package.spec import TensorSpec
from models.runtime.interpreters import announce, find_runtime
from models.runtime.rows import Array, Rows, row_count

#: A description takes a few kB; a larger file is not one.
_MAX_DESCRIPTION_BYTES = 1 << 20


class Release(msgspec.Struct, frozen=True, omit_defaults=True):
    """Description of a released model: the `.json` beside the `.tflite`.

    Attributes:
        name: name of the model.
        numbers: `float32`, `float16` (weights only) or `int8` (everything).
        inputs: input tensors, before mean and std.
        outputs: output tensors.
        batch_size: rows of one call.
        loss: the training loss.
        sha256: digest of the `.tflite` file.
        classes: names of the classes of the first output, if it is a classification.
        threshold: threshold of a first output of one number; above it, class 1 is predicted.
        federation: where the model was trained; empty if it was not trained in a federation.
        version: version of θ.
        trained_at: when that version was made, ISO 8601, UTC.
        agents: number of agents whose updates made that version.
        federation_metrics: loss and metrics of that version on the agents' held-out rows.
        personal: numbers of personal layers; the file holds their initial values.
        source: source of architecture or task.
        licence: licence of the data, as given.
        made_at: when the release was made, ISO 8601, UTC.
        metrics: metrics of the float model on the comparison data.
        released_metrics: metrics of this file on the same rows.
        released_matrices: confusion matrices of this file, on the same rows; rows are true classes.
        rows: number of rows of the comparison data.
        agreement: share of rows with the same best class; for a regression, the root mean square
            of the difference, relative to that of the float model's output.
        verdict: of the comparison with the float model: "good", or "not good", for which `faults`
            has the reasons. float32 and float16 files that differ are not made.
        faults: reasons why it is not good.
        judged_on: rows of the comparison of an int8 file, which do not calibrate it, in words.
        judged_rows: number of them.
        median_difference: of these rows, in spreads (root mean square distances from the median) of
            the float model's predictions: a constant prediction has 1 or so.
        worst_difference: of these rows, likewise.
        classifies: whether the first output predicts a class, so that `agreement` is a share.
        bytes: size of the file.
        program_seconds: median time per row of the program's `predict` on `machine`, in calls of
            the program's batch size.
        seconds: median time per row of this file on `machine`, in calls of `batch_size` rows.
        machine: where the release was made and timed.
    """

    name: str
    numbers: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_size: int
    loss: str
    sha256: str
    verdict: Literal["good", "not good"]
    classes: tuple[str, ...] = ()
    threshold: float = 0.5
    federation: str = ""
    version: int | None = None
    trained_at: str = ""
    agents: int = 0
    federation_metrics: dict[str, float] = {}
    personal: int = 0
    source: str = ""
    licence: str = ""
    made_at: str = ""
    metrics: dict[str, float] = {}
    released_metrics: dict[str, float] = {}
    released_matrices: dict[str, list[list[float]]] = {}
    rows: int = 0
    agreement: float | None = None
    faults: tuple[str, ...] = ()
    judged_on: str = ""
    judged_rows: int = 0
    median_difference: float | None = None
    worst_difference: float | None = None
    classifies: bool = False
    bytes: int = 0
    program_seconds: float = 0.0
    seconds: float = 0.0
    machine: str = ""


def load_release(path: Path) -> tuple[bytes, Release]:
    """Returns the model file and its description.

    Raises:
        ModelError: one of the two is missing, or they do not belong together.
    """
    beside = path.with_suffix(".json")
    try:
        data, text = path.read_bytes(), beside.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{error.filename}: {error.strerror}; a released model is a .tflite with its .json "
            "beside it (made by `fedge model release`)"
        ) from error
    if len(text) > _MAX_DESCRIPTION_BYTES:
        raise ModelError(f"{beside}: {len(text)} bytes, limit {_MAX_DESCRIPTION_BYTES}")
    try:
        release = msgspec.json.decode(text, type=Release)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{beside}: {error}") from error
    # The interpreters do not validate the file and may crash on a damaged one.
    if hashlib.sha256(data).hexdigest() != release.sha256:
        raise ModelError(f"{path}: damaged, or not the file that {beside.name} describes")
    return data, release


class InferenceModel:
    """Released model, loaded into a TFLite interpreter.

    Args:
        data: content of the `.tflite` file.
        inputs: in the model's order.
        outputs: in the model's order.
        batch_size: rows of one call.
        runtime: see `models.runtime.interpreters`.
        threads: number of threads of the interpreter.

    Raises:
        ModelError: there is no interpreter, it refuses the file, or the file has other inputs or
            outputs.
    """

    def __init__(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        batch_size: int,
        *,
        runtime: str | None = None,
        threads: int = 1,
    ) -> None:
        interpreter_class, self.runtime = find_runtime(runtime)
        announce(interpreter_class, self.runtime)
        self._inputs, self._outputs, self._batch_size = inputs, outputs, batch_size
        try:
            interpreter = interpreter_class(model_content=data, num_threads=threads)
            interpreter.allocate_tensors()
            self._runner = interpreter.get_signature_runner("predict")
        except (ValueError, RuntimeError, TypeError, MemoryError) as error:
            raise ModelError(f"{self.runtime} cannot load the model: {one_line(error)}") from error
        self._interpreter = interpreter  # the runner does not keep it alive
        self._input_details = self._runner.get_input_details()
        self._output_details = self._runner.get_output_details()
        _check_fit("input", inputs, batch_size, self._input_details)
        _check_fit("output", outputs, batch_size, self._output_details)

    def predict(self, rows: Rows) -> dict[str, Array]:
        """Returns one float32 array of shape (n, *shape) per output.

        Args:
            rows: one array of shape (n, *shape) per input, scaled by the spec.

        Raises:
            ModelError: an input is missing or has the wrong shape.
            TrainingError: the interpreter failed.
        """
        count, size = self._check(rows), self._batch_size
        parts: dict[str, list[Array]] = {output.name: [] for output in self._outputs}
        for start in range(0, count, size):
            taken = min(size, count - start)
            found = self._call({t.name: rows[t.name][start : start + taken] for t in self._inputs})
            for output in self._outputs:
                parts[output.name].append(found[output.name][:taken])
        return {
            output.name: np.concatenate(parts[output.name]).reshape(count, *output.shape)
            if count
            else np.zeros((0, *output.shape), np.float32)
            for output in self._outputs
        }

    def seconds(self, rows: Rows, repeats: int = 50) -> float:
        """Returns the median time of one row, in seconds."""
        batch = {t.name: rows[t.name][: self._batch_size] for t in self._inputs}
        times = []
        for _ in range(repeats + 3):
            began_s = time.perf_counter()
            self._call(batch)
            times.append(time.perf_counter() - began_s)
        return float(np.median(times[3:])) / self._batch_size

    def _check(self, rows: Rows) -> int:
        for tensor in self._inputs:
            if tensor.name not in rows:
                raise ModelError(
                    f"the model needs the array {tensor.name!r}; given: {', '.join(rows)}"
                )
        count = row_count({t.name: rows[t.name] for t in self._inputs})
        for tensor in self._inputs:
            shape = rows[tensor.name].shape
            if shape != (count, *tensor.shape):
                raise ModelError(
                    f"{tensor.name!r} has shape {shape}, expected {(count, *tensor.shape)}"
                )
        return count

    def _call(self, batch: Rows) -> dict[str, Array]:
        given = {
            tensor.name: self._to_model(batch[tensor.name], self._input_details[tensor.name])
            for tensor in self._inputs
        }
        try:
            found = self._runner(**given)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise TrainingError(f"{self.runtime}: predict failed: {one_line(error)}") from error
        return {
            name: _to_float(found[name], detail) for name, detail in self._output_details.items()
        }

    def _to_model(self, values: Array, detail: dict[str, Any]) -> Array:
        dtype = np.dtype(detail["dtype"])
        padded = np.zeros((self._batch_size, *values.shape[1:]), np.float64)
        padded[: len(values)] = values
        if dtype == np.int8:
            scale, zero = detail["quantization"]
            padded = np.clip(np.rint(padded / scale) + zero, -128, 127)
        return np.ascontiguousarray(padded, dtype)


def _check_fit(
    what: str, tensors: tuple[TensorSpec, ...], batch_size: int, details: dict[str, dict[str, Any]]
) -> None:
    """Raises ModelError unless the file's inputs or outputs are those of its description."""
    names = [tensor.name for tensor in tensors]
    if sorted(names) != sorted(details):
        raise ModelError(
            f"the model does not fit its description: its {what}s are {sorted(details)}, "
            f"described are {sorted(names)}"
        )
    for tensor in tensors:
        found = tuple(map(int, details[tensor.name]["shape"]))
        dtype = np.dtype(details[tensor.name]["dtype"]).name
        shape = (batch_size, *tensor.shape)
        if found != shape or dtype not in (tensor.dtype, "int8"):
            raise ModelError(
                f"the model does not fit its description: {what} {tensor.name!r} is {dtype} "
                f"{found}, described is {tensor.dtype} {shape}"
            )


def _to_float(values: Array, detail: dict[str, Any]) -> Array:
    if np.dtype(detail["dtype"]) != np.int8:
        return values
    scale, zero = detail["quantization"]
    found: Array = ((values.astype(np.float32) - zero) * scale).astype(np.float32)
    return found

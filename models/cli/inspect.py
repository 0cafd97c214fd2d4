"""Package section of `fedge model inspect`: inputs, outputs, layout, signatures, runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fedge.errors import ModelError
from models.package.package import ModelPackage
from models.package.signatures import expected_signatures
from models.package.spec import ModelSpec
from models.runtime.interpreters import available_runtimes, find_runtime
from models.runtime.program import Program
from models.runtime.wheels import DEVICE_RUNTIMES


def package_report(package: ModelPackage, runtime: str | None) -> dict[str, Any]:
    """Returns the description of a package, as JSON has it.

    Args:
        package: the package.
        runtime: runtime that loads the program; None tries all that are installed.
    """
    spec = package.spec
    return {
        "name": spec.name,
        "source": spec.source,
        "parameters": spec.size,
        "loss": spec.loss,
        "metrics": [metric.name for metric in spec.metrics],
        "batch_size": spec.batch_size,
        "batch_sizes": list(spec.batch_sizes),
        "max_step_rows": max_step_rows(spec),
        "program_bytes": len(package.program),
        "digest": package.digest,
        "fingerprint": spec.fingerprint,
        "layout": list(_layout(spec)),
        "inputs": [msgspec.structs.asdict(tensor) for tensor in spec.inputs],
        "targets": [msgspec.structs.asdict(tensor) for tensor in spec.targets],
        "frozen": spec.frozen,
        "personal": spec.personal.size if spec.personal else 0,
        "outputs": [msgspec.structs.asdict(tensor) for tensor in spec.outputs],
        "signatures": {
            name: {"inputs": _names(inputs), "outputs": _names(outputs)}
            for name, (inputs, outputs) in expected_signatures(spec).items()
        },
        "runtimes": _runtimes(package, runtime),
    }


def max_step_rows(spec: ModelSpec) -> int | None:
    """Returns the largest `training.batch_size` that the model takes; None: any."""
    limit = max(spec.batch_sizes)
    return limit if spec.step_problem(limit + 1) else None


def step_advice(limit: int) -> str:
    """Returns a line about the rows of a step of a model with BatchNormalization."""
    return (
        f"training.batch_size must be 1 to {limit:,}, the rows of one call, over which "
        "BatchNormalization takes its mean and variance; --batch-size raises it"
    )


def _layout(spec: ModelSpec) -> Iterator[dict[str, Any]]:
    """Returns the tensors of the program's vector: those of θ, then the personal ones."""
    for layout, start in ((spec.layout, 0), (spec.personal, spec.size)):
        for parameter, place in layout.slices() if layout is not None else ():
            yield {
                "name": parameter.name,
                "shape": list(parameter.shape),
                "offset": start + place.start,
                "tracked": parameter.tracked,
                "personal": layout is not spec.layout,
            }


def _names(tensors: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, str]:
    """Returns tensors as `{"theta": "float32[3767]", …}`."""
    return {
        name: f"{dtype}[{', '.join(map(str, shape))}]" for name, (shape, dtype) in tensors.items()
    }


def _runtimes(package: ModelPackage, only: str | None) -> dict[str, str]:
    """Returns per installed runtime whether it loads the program, or its error."""
    found = {}
    installed = available_runtimes()
    light = [name for name in installed if name in DEVICE_RUNTIMES]
    if only is not None:
        find_runtime(only)  # raises if the named runtime is missing
    for runtime in [only] if only else light or installed:
        try:
            version = Program(
                package.program, package.spec, frozen=package.frozen, runtime=runtime
            ).runtime
        except ModelError as error:
            found[runtime] = str(error)
        else:
            found[runtime] = f"loads it ({version.removeprefix(runtime).strip()})"
    return found


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """Returns the description as lines of text."""
    for key in ("name", "source", "parameters", "loss", "metrics", "batch_size"):
        value = report[key]
        text = ", ".join(value) if isinstance(value, list) else value
        yield (
            f"{key.replace('_', ' '):<12} {text:,}"
            if isinstance(text, int)
            else f"{key:<12} {text}"
        )
    if len(report["batch_sizes"]) > 1:
        yield f"{'batch sizes':<12} {', '.join(map(str, report['batch_sizes']))}"
    if report["max_step_rows"]:
        yield f"{'steps':<12} {step_advice(report['max_step_rows'])}"
    yield f"{'program':<12} {report['program_bytes']:,} bytes"
    yield f"{'digest':<12} {report['digest']}"
    yield f"{'fingerprint':<12} {report['fingerprint']}"
    for runtime, verdict in report["runtimes"].items() or [("none", "is installed here")]:
        yield f"{'runtime':<12} {runtime} {verdict}"
    for key in ("frozen", "personal"):
        if report[key]:
            yield f"{key:<12} {report[key]:,} numbers"
    for kind in ("inputs", "outputs", "targets"):
        for tensor in report[kind]:
            yield from _tensor_lines(kind.removesuffix("s"), tensor)
    yield "layout"
    for entry in report["layout"]:
        shape = " x ".join(map(str, entry["shape"])) or "()"
        notes = [", follows the data, never stepped"] if entry["tracked"] else []
        notes += [", stays on the device"] if entry["personal"] else []
        yield f"  {entry['offset']:>9,}  {entry['name']:<32} {shape}{''.join(notes)}"
    yield "signatures"
    for name, signature in report["signatures"].items():
        inputs, outputs = (
            ", ".join(f"{key} {text}" for key, text in signature[side].items())
            for side in ("inputs", "outputs")
        )
        yield f"  {name}({inputs})"
        yield f"    -> {outputs}"


def _tensor_lines(kind: str, tensor: dict[str, Any]) -> Iterator[str]:
    shape = " x ".join(map(str, tensor["shape"])) or "a number"
    classes = f": {', '.join(tensor['classes'])}" if tensor["classes"] else ""
    yield f"{kind:<12} {tensor['name']}, {shape} per row, {tensor['dtype']}{classes}"
    features, units, means, stds = (tensor[key] for key in ("features", "units", "mean", "std"))
    for index in range(max(map(len, (features, units, means)))):
        parts = [features[index]] if index < len(features) else []
        parts += [f"in {units[index]}"] if index < len(units) else []
        parts += [f"mean {means[index]:g}, std {stds[index]:g}"] if index < len(means) else []
        yield f"{'':<12}   {', '.join(parts)}"

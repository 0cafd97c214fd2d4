"""Model card of a released model: its description as a page for people."""

from __future__ import annotations

from models.package.spec import TensorSpec
from models.package.units import metric_text, output_units
from models.runtime.inference import Release


def model_card(release: Release) -> str:
    """Returns the model card in Markdown."""
    lines = [f"# {release.name}", ""]
    if release.verdict != "good":
        lines += ["**Not good, do not use it:** " + "; ".join(release.faults) + ".", ""]
    units = output_units(release.outputs)
    where = f"federation `{release.federation}`" if release.federation else "not stated"
    version = "" if release.version is None else f", version {release.version} of its weights"
    if release.trained_at:
        version += f", made {release.trained_at}" + (
            f" of the updates of {release.agents:,} agents" if release.agents else ""
        )
    facts = [
        ("what", release.source or release.name),
        ("trained in", where + version),
        ("loss", release.loss),
        ("numbers", _NUMBERS[release.numbers]),
        ("size", f"{release.bytes:,} bytes"),
        ("SHA-256", f"`{release.sha256}`"),
        ("made", f"{release.made_at} on {release.machine}".strip()),
        ("licence of the data", release.licence or "not stated"),
    ]
    if release.seconds:
        times = f"{1e6 * release.seconds:,.3g} µs a row here, {release.batch_size} in a call"
        program = f"{1e6 * release.program_seconds:,.3g} µs in its own batches"
        facts.append(("speed", f"{times} (the program that trains: {program})"))
    if release.personal:
        facts.append(
            (
                "personal layers",
                f"{release.personal:,} numbers, as every device starts with them: not what a "
                "device has learned for itself",
            )
        )
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts if text), ""]
    if release.federation_metrics:
        lines += ["## Measured by the agents, on rows that they held out", "", "| | |", "|---|---|"]
        figures = release.federation_metrics.items()
        lines += [f"| {name} | {metric_text(units, name, value)} |" for name, value in figures]
        lines.append("")
    lines += [*_judgement(release), *_figures(release)]
    lines += [
        "## Inputs and outputs",
        "",
        "| | shape of a row | type | what |",
        "|---|---|---|---|",
    ]
    for kind, tensors in (("input", release.inputs), ("output", release.outputs)):
        for tensor in tensors:
            what = _what(tensor, is_output=kind == "output")
            shape = " x ".join(map(str, tensor.shape)) or "one number"
            lines.append(f"| {kind} `{tensor.name}` | {shape} | {tensor.dtype} | {what} |")
    lines.append("")
    if release.classes:
        lines += ["Classes, in order: " + ", ".join(release.classes) + ".", ""]
    lines += [
        "Inputs are scaled by mean and std before they go in, outputs turned back by theirs "
        "(`fedge agent predict` does both, from the `.json` beside the file).",
        "",
    ]
    return "\n".join(lines)


def _judgement(release: Release) -> list[str]:
    if not release.judged_on:
        return []
    lines = [f"## Compared row by row with the float model: {release.verdict}", ""]
    if release.median_difference is None or release.worst_difference is None:
        return [*lines, f"On {release.judged_rows:,} {release.judged_on}.", ""]
    return [
        *lines,
        f"| difference on {release.judged_rows:,} {release.judged_on} | in spreads of the "
        "predictions |",
        "|---|---|",
        f"| median | {release.median_difference:.4f} |",
        f"| worst | {release.worst_difference:.4f} |",
        "",
    ]


def _figures(release: Release) -> list[str]:
    if not release.rows:
        return ["Not measured: no data was given (`--data`).", ""]
    lines = [
        f"## Measured on {release.rows:,} rows",
        "",
        "| | float32 program | this file |",
        "|---|---|---|",
    ]
    units = output_units(release.outputs)
    for name, value in release.metrics.items():
        released = release.released_metrics.get(name, float("nan"))
        both = (metric_text(units, name, each) for each in (value, released))
        lines.append(f"| {name} | {' | '.join(both)} |")
    if release.agreement is not None:
        text = (
            f"Both choose the same class for {release.agreement:.1%} of the rows."
            if release.classifies
            else f"Root mean square of the difference: {release.agreement:.2%} of the output's."
        )
        lines += ["", text]
    for name, matrix in release.released_matrices.items():
        lines += ["", *_matrix(name, matrix, release.classes)]
    return [*lines, ""]


def _matrix(name: str, matrix: list[list[float]], classes: tuple[str, ...]) -> list[str]:
    names = classes if len(classes) == len(matrix) else tuple(map(str, range(len(matrix))))
    lines = [
        f"{name} of this file, rows of a class by what is predicted:",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for each, row in zip(names, matrix, strict=True):
        lines.append(f"| {each} | {' | '.join(f'{value:.10g}' for value in row)} |")
    return lines


def _scale(tensor: TensorSpec) -> str:
    mean, std = (", ".join(f"{n:g}" for n in given) for given in (tensor.mean, tensor.std))
    return f"mean {mean}, std {std}"


def _what(tensor: TensorSpec, *, is_output: bool) -> str:
    names = list(tensor.features)
    units = list(tensor.units) * (len(names) if len(tensor.units) == 1 else 1)
    if names and len(names) == len(units):
        names = [f"{name} ({unit})" for name, unit in zip(names, units, strict=True)]
    parts = [", ".join(names[:24]) + (" …" if len(names) > 24 else "")] if names else []
    if not names and units:
        parts.append(", ".join(dict.fromkeys(units)))
    if tensor.missing is not None:
        parts.append("missing values allowed")
    if is_output and tensor.std:
        parts.append("the file gives (value - mean) / std, " + _scale(tensor))
    return "; ".join(parts)


_NUMBERS = {
    "float32": "float32",
    "float16": "float16 weights, float32 arithmetic",
    "int8": "int8 (full integer, but for operators that interpreters have in float32 only)",
}

"""`fedge model release`: makes an inference model from a version of θ."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from fedge.console import StepLines, command_errors
from fedge.errors import ConfigError, ExportError, ModelError
from learning.vector.parameters import F32
from models.cli.model_card import model_card
from models.cli.output import check_file, output_errors
from models.cli.user_code import find_function, parse_reference, user_code_errors
from models.export.progress import progress_to
from models.package.package import ModelPackage, load_package, read_vector
from models.package.spec import ModelSpec, TensorSpec
from models.package.stored_versions import STORE_FILE, StoredVersion, read_version, stored_model
from models.package.units import metric_text, output_units
from models.runtime.central_rows import has_targets, read_rows
from models.runtime.inference import Release
from models.runtime.rows import Rows
from models.zoo import load_zoo, open_model, zoo_names

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("package", metavar="FOLDER|NAME")
@click.option(
    "--weights",
    metavar="VERSION|FILE|FOLDER",
    help="Weights to release: a version that the coordinator keeps (then FOLDER is its state "
    "folder, or --state names it), an initial.npy, or another package folder. Default: the latest "
    "version, or the package's own.",
)
@click.option(
    "--best",
    is_flag=True,
    help="The best version by the coordinator's stop.metric, instead of the latest.",
)
@click.option("--state", type=_PATH, help="The coordinator's state_dir, for --weights VERSION.")
@click.option(
    "--int8",
    is_flag=True,
    help="Integer weights and arithmetic: weights take a quarter. A file of few weights may grow.",
)
@click.option("--float16", is_flag=True, help="Weights take half. A file of few weights may grow.")
@click.option("--float32", is_flag=True, help="As trained (default).")
@click.option(
    "--calibration",
    type=_PATH,
    help="Representative rows for --int8: .npz with one array per input, in the inputs' units.",
)
@click.option(
    "--data",
    type=_PATH,
    help="Rows to measure both models on: .npz with inputs and targets. Default: the calibration "
    "rows, where they have targets; of --int8 every fifth, which then does not calibrate.",
)
@click.option("--out", type=_PATH, help="The .tflite; its .json and .md are written beside it.")
@click.option("--licence", default="", help="Licence of the training data, for the model card.")
@click.option(
    "--model",
    "function",
    metavar="FILE.py:FUNCTION",
    help="Build the Keras model anew, where its own layers cannot be rebuilt from the package.",
)
@click.option("--batch-size", type=click.IntRange(1, 65_536), default=1, help="Rows of one call.")
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
@command_errors
def release(
    package: str,
    weights: str | None,
    best: bool,
    state: Path | None,
    int8: bool,
    float16: bool,
    float32: bool,
    calibration: Path | None,
    data: Path | None,
    out: Path | None,
    licence: str,
    function: str | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Write a version of the weights as one .tflite for predicting, and measure it.

    Writes NAME.tflite, NAME.json (what it takes and gives, for `fedge agent predict`) and NAME.md
    (a model card: origin, figures of the float model and of this one, size, speed here). Needs
    TensorFlow: install fedge with its extra, fedge[export]. An int8 file whose predictions differ
    much from the float model's, or whose calibration rows cannot give ranges, is written with this
    verdict, and the command ends with exit code 2.
    """
    numbers = _only_one(int8=int8, float16=float16, float32=float32) or "float32"
    if numbers == "int8" and calibration is None:
        raise ConfigError("--int8 needs representative rows: --calibration DATA.npz")
    if out is not None and out.suffix != ".tflite":
        raise ConfigError(f"--out {out}: the name must end in .tflite")
    if function is not None:
        parse_reference(function)  # before TensorFlow is loaded
    if best and weights is not None:
        raise ConfigError(f"--best and --weights {weights}: give one of them")
    content, theta, found = _find(package, "best" if best else weights, state)
    if best and found is not None:
        click.echo(f"the best version is {found.version}", err=True)
    path = out or Path(f"{content.spec.name}_{numbers}.tflite")
    check_file(path)
    rows = _calibration(calibration, content.spec) if calibration else None
    measured = read_rows(data, content.spec) if data else None
    if numbers != "int8" and measured is None and rows is not None and _is_labelled(rows, content):
        measured = rows
    tell = StepLines(quiet=as_json)
    tell("loading TensorFlow, some seconds")
    from models.export.release.releaser import Origin, release_model

    origin = Origin(
        federation=found.federation if found else "",
        version=found.version if found else None,
        trained_at=_iso_time(datetime.fromtimestamp(found.created_at, UTC)) if found else "",
        agents=found.agents if found else 0,
        evaluation=found.evaluation if found else {},
        licence=licence,
        made_at=_iso_time(datetime.now(UTC)),
        machine=f"{platform.machine()} {platform.system()}",
    )
    with progress_to(tell):
        made = release_model(
            content,
            theta,
            numbers,  # type: ignore[arg-type]
            calibration=rows,
            data=measured,
            origin=origin,
            build=_builder(function),
            batch_size=batch_size,
        )
    description = msgspec.json.format(msgspec.json.encode(made.release), indent=1)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.tflite)
        path.with_suffix(".json").write_bytes(description + b"\n")
        path.with_suffix(".md").write_text(model_card(made.release))
    if as_json:
        click.echo(description.decode())
    else:
        lines = _lines(path, msgspec.to_builtins(made.release))
        click.echo("\n".join([*lines, *_size_advice(made.release, content.spec)]))
    if made.release.verdict != "good":
        raise ExportError(f"{path} is written, and not good: {'; '.join(made.release.faults)}")


def _calibration(path: Path, spec: ModelSpec) -> Rows:
    return read_rows(path, spec, targets=has_targets(path, spec))


def _is_labelled(rows: Rows, package: ModelPackage) -> bool:
    return all(target.name in rows for target in package.spec.targets)


def _only_one(**flags: bool) -> str | None:
    """Returns the flag that is given, None without any.

    Raises:
        ConfigError: several are given.
    """
    given = [name for name, is_given in flags.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(f'--{name}' for name in given)}: give one of them")
    return given[0] if given else None


def _size_advice(release: Release, spec: ModelSpec) -> list[str]:
    """Returns a hint if smaller weights may not have made the file smaller."""
    weights_bytes = 4 * (spec.whole_size + spec.frozen)
    if release.numbers == "float32" or release.bytes <= weights_bytes:
        return []
    return [
        f"most of the file is not weights ({weights_bytes:,} bytes as float32): --float32 may make "
        "a smaller one"
    ]


def _iso_time(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def _find(
    reference: str, weights: str | None, state: Path | None
) -> tuple[ModelPackage, F32, StoredVersion | None]:
    """Returns package, θ, and the stored version if θ comes from a federation."""
    content, home = _package(reference, weights)
    state = state or home
    if weights in (None, "best") or weights.isdigit():
        if state is None:
            if weights is None:
                return content, np.array(content.initial), None
            wanted = "--best" if weights == "best" else f"--weights {weights} is a version"
            raise ConfigError(f"{wanted}: name the coordinator's folder with --state")
        version = int(weights) if weights and weights.isdigit() else None
        found = read_version(
            state, "best" if weights == "best" else version, content.spec.fingerprint
        )
        return content, found.theta, found
    path = Path(weights)
    theta = load_package(path).initial if path.is_dir() else read_vector(path)
    try:
        content.spec.layout.check(theta)
    except ModelError as error:
        raise ModelError(f"--weights {weights}: {error}") from error
    return content, np.array(theta), None


def _package(reference: str, weights: str | None) -> tuple[ModelPackage, Path | None]:
    """Returns the package, and the coordinator's state folder that holds it, if any."""
    if reference in zoo_names():
        return load_zoo(reference), None
    folder = Path(reference)
    if _is_state(folder):
        return _model_of(folder, weights), folder
    return open_model(reference), folder.parent if _is_state(folder.parent) else None


def _model_of(state: Path, weights: str | None) -> ModelPackage:
    """Returns the model of a state folder, which has it from the end of the first run on."""
    if (state / "model").is_dir():
        return load_package(state / "model")
    name, fingerprint = stored_model(state)
    if name in zoo_names() and (package := load_zoo(name)).spec.fingerprint == fingerprint:
        return package
    option = "" if weights is None else " --best" if weights == "best" else f" --weights {weights}"
    raise ConfigError(
        f"{state} has no model before its coordinator ends: name that of coordinator.yaml, "
        f"`fedge model release MODEL --state {state}{option}`"
    )


def _is_state(folder: Path) -> bool:
    try:
        return (folder / STORE_FILE).is_file()
    except OSError:  # no permission: opening the package reports it
        return False


def _builder(reference: str | None) -> Callable[[], Any] | None:
    if reference is None:
        return None
    function = find_function(reference)

    def build() -> Any:
        with user_code_errors(f"{reference}()"):
            return function()

    return build


def _lines(path: Path, release: dict[str, Any]) -> list[str]:
    lines = [f"{path}: {release['name']}, {release['numbers']}, {release['bytes']:,} bytes"]
    figures = release.get("metrics", {})
    units = output_units(msgspec.convert(release["outputs"], tuple[TensorSpec, ...]))
    if figures:
        lines.append(f"measured on {release['rows']:,} rows  float32   this file")
        for name, value in figures.items():
            other = release["released_metrics"].get(name)
            text = "-" if other is None else f"{other:9.4f}"
            shown = metric_text(units, name, value if other is None else other)
            _, _, unit = shown.partition(" ")
            lines.append(f"  {name:<24} {value:9.4f} {text} {unit}".rstrip())
        if release.get("agreement") is not None:
            kind = "same class" if release.get("classifies") else "relative difference"
            lines.append(f"  {kind:<24} {release['agreement']:19.4f}")
    if release.get("judged_on"):
        lines.append(f"judged on {release['judged_rows']:,} {release['judged_on']}")
        if release.get("median_difference") is not None:
            spreads = [f"{release[f'{w}_difference']:.4f} {w}" for w in ("median", "worst")]
            lines.append(f"  {'difference in spreads':<24} {', '.join(spreads)}")
    if release.get("seconds"):
        lines.append(f"{1e6 * release['seconds']:.3g} µs a row here")
    if release.get("personal"):
        lines.append(
            f"personal layers ({release['personal']:,} numbers): as devices start with them"
        )
    lines.append(f"model card: {path.with_suffix('.md')}")
    return lines

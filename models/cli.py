"""`fedge model`: export a Keras model, list the zoo, look into a package."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec

from models.analysis import DEVICES, THIS
from models.cli_costs import cost_lines, cost_report
from models.cli_release import release
from models.cli_runtimes import runtime_option, runtimes
from models.console import command_errors
from models.errors import ConfigError, ExportError, FederationError, ModelError
from models.package import ModelPackage
from models.program import Program, expected_signatures
from models.runtimes import available_runtimes, find_runtime
from models.spec import ModelSpec
from models.wheels import LIGHT
from models.zoo import load_zoo, open_model, zoo_names, zoo_record


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Export, list and inspect models."""


cli.add_command(runtimes)


@cli.command()
@click.argument("function", metavar="FILE.py:FUNCTION|MODULE:FUNCTION")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the package; made when absent, its package files are replaced.",
)
@click.option("--name", help="Name of the model; default: the name of the folder.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 65_536),
    multiple=True,
    help="Rows of one program call; default: 32. Give more of them for further sizes, up to four.",
)
@click.option(
    "--train",
    multiple=True,
    metavar="LAYER",
    help="Train only layers of this name or pattern (head*); all others are frozen: stored once in "
    "the package, at a byte each, and never sent again. May be given more than once.",
)
@click.option(
    "--personal",
    multiple=True,
    metavar="LAYER",
    help="Layers of this name or pattern stay on the device: each learns its own.",
)
@click.option(
    "--reconstruct",
    default="",
    metavar="INPUT",
    help="An autoencoder: compare the output with this input; the data need no target.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="A metric beside the compiled ones: confusion, f1, auc, r2, rmse ...",
)
@command_errors
def export(
    function: str,
    out: Path,
    name: str | None,
    batch_size: tuple[int, ...],
    train: tuple[str, ...],
    personal: tuple[str, ...],
    reconstruct: str,
    metrics: tuple[str, ...],
) -> None:
    """Turn a compiled Keras model into a package that devices can train.

    FUNCTION takes no arguments and returns a compiled Keras model, or a package it made itself with
    models.export.exporter.export_model (to add features, units, mean, std and classes). FILE.py is
    executed. Needs TensorFlow: install fedge with its extra, fedge[export]. Writes nothing but the
    folder.
    """
    place, attribute = _parse(function)
    click.echo("loading TensorFlow, which takes some seconds ...", err=True)
    # Only this command needs TensorFlow. Imported before the user's file, so that a missing
    # TensorFlow is reported as such, and what it prints on import is hidden.
    from models.export.exporter import export_model

    build = _function(place, attribute)
    with _user_code(f"{function}()"):
        built = build()
    if isinstance(built, ModelPackage):
        if name is not None or any((batch_size, train, personal, reconstruct, metrics)):
            raise ConfigError(
                f"{function} returns a finished package: give its options to its export_model, "
                "not to this command"
            )
        package = built
    else:
        click.echo("tracing and converting ...", err=True)
        try:
            package = export_model(
                built,
                name=name or out.resolve().name,
                batch_size=batch_size or 32,
                train=train,
                personal=personal,
                reconstruct=reconstruct,
                metrics=metrics,
            )
        except ExportError as error:
            raise ExportError(f"{function}: {error}") from error
    try:
        package.save(out)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error
    click.echo(
        f"{out}: {package.spec.name}, {package.spec.size:,} parameters{_parts(package)}, "
        f"program {len(package.program):,} bytes, digest {package.digest[:12]}"
    )


def _parts(package: ModelPackage) -> str:
    """What of the model is not in θ."""
    personal = package.personal.size
    frozen = package.spec.frozen
    return (f" + {personal:,} personal" if personal else "") + (
        f" + {frozen:,} frozen" if frozen else ""
    )


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@command_errors
def list_models(as_json: bool) -> None:
    """List the models that come with this program."""
    rows = []
    for name in zoo_names():
        record, package = zoo_record(name), load_zoo(name)
        rows.append(
            {
                "name": name,
                "task": record.task,
                "source": record.source,
                "parameters": package.spec.size,
                "program_bytes": len(package.program),
                "digest": package.digest,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows:
        sizes = f"{row['parameters']:>9,} parameters {row['program_bytes']:>8,} bytes"
        click.echo(f"{row['name']:<22} {sizes}  {row['task']}")


@cli.command()
@click.argument("model", metavar="FOLDER|NAME")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option(
    "--device",
    type=click.Choice([*DEVICES, THIS]),
    default="pi-4",
    show_default=True,
    help="Estimate the time of an epoch there; `this` runs the program here.",
)
@click.option(
    "--rows",
    type=click.IntRange(1, 100_000_000),
    default=1000,
    show_default=True,
    help="Rows of a device's data, for the estimates.",
)
@runtime_option
@command_errors
def inspect(model: str, as_json: bool, device: str, rows: int, runtime: str | None) -> None:
    """Show what is in a package: a folder, or the name of a model in the zoo.

    Loads the program into every TFLite interpreter installed here, or only into --runtime, and says
    which take it. TensorFlow, which takes seconds to load, is tried when named or alone. Estimates
    memory and time of training on a device.
    """
    package = open_model(model)
    costs = cost_report(package, device, rows, runtime)  # a damaged program may crash runtimes
    report = _report(package, runtime) | costs
    if as_json:
        click.echo(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        click.echo("\n".join([*_lines(report), *cost_lines(report)]))


cli.add_command(release)


def find_function(reference: str) -> Callable[[], Any]:
    """The function that `FILE.py:FUNCTION` or `MODULE:FUNCTION` names.

    Raises:
        ConfigError: there is none, or its file failed.
    """
    return _function(*_parse(reference))


def _parse(reference: str) -> tuple[str | Path, str]:
    """Module name or file, and function name; checked as far as possible without running code.

    Raises:
        ConfigError: not of the form, or no such file.
    """
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute.isidentifier():
        raise ConfigError(
            f"{reference!r}: expected FILE.py:FUNCTION or MODULE:FUNCTION, as in model.py:build"
        )
    if not (place.endswith(".py") or "/" in place):
        return place, attribute
    if not Path(place).is_file():
        raise ConfigError(f"{place}: no such file")
    return Path(place), attribute


def _function(place: str | Path, attribute: str) -> Callable[[], Any]:
    """The function, after running its file or importing its module.

    Raises:
        ConfigError: there is no such module or function, or it failed.
    """
    module = _load_file(place) if isinstance(place, Path) else _load_module(place)
    function: Callable[[], Any] | None = getattr(module, attribute, None)
    if function is None or not callable(function):
        names = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise ConfigError(
            f"{place} has no function {attribute!r}; it has: {', '.join(names) or 'none'}"
        )
    return function


def _load_file(path: Path) -> ModuleType:
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"{path}: not a Python file (the name must end in .py)")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickling inside the file look their module up by name.
    sys.modules.setdefault(path.stem, module)
    # What the file imports from its own folder is found as if it were run.
    sys.path.insert(0, str(path.resolve().parent))
    with _user_code(str(path)):
        module_spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    # Modules of the working folder count, as with `python -m`, but come last: a `models` there
    # must not hide ours.
    sys.path.append(str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent is missing, or is no package
        found = None
    if found is None:
        raise ConfigError(
            f"no module {name!r} here; for a file write its path with .py: {name}.py:FUNCTION"
        )
    with _user_code(name):
        return importlib.import_module(name)


@contextlib.contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Errors of code that we were asked to run, in one line that says where."""
    try:
        yield
    except FederationError:
        raise
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        line = f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})" if trace else ""
        text = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        raise ConfigError(f"{what} failed: {detail}{line}; -v shows the traceback") from error


def _report(package: ModelPackage, runtime: str | None) -> dict[str, Any]:
    spec = package.spec
    return {
        "name": spec.name,
        "source": spec.source,
        "parameters": spec.size,
        "loss": spec.loss,
        "metrics": [metric.name for metric in spec.metrics],
        "batch_size": spec.batch_size,
        "batch_sizes": list(spec.batch_sizes),
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


def _layout(spec: ModelSpec) -> Iterator[dict[str, Any]]:
    """The tensors of the vector that the program takes: θ's, then the personal ones."""
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
    """`{"theta": "float32[3767]", …}`."""
    return {
        name: f"{dtype}[{', '.join(map(str, shape))}]" for name, (shape, dtype) in tensors.items()
    }


def _runtimes(package: ModelPackage, only: str | None) -> dict[str, str]:
    """Installed interpreter -> its version when it takes the program, else what it says."""
    found = {}
    installed = available_runtimes()
    light = [name for name in installed if name in LIGHT]
    if only is not None:
        find_runtime(only)  # asked for and not there: an error, and no line among others
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


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
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

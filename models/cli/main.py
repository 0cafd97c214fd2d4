"""`fedge model`: exports, lists, inspects and releases models; shows the TFLite interpreters."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fedge.console import CommandGroup, StepLines, command_errors
from fedge.errors import ConfigError, ExportError
from models.cli.costs import cost_lines, cost_report
from models.cli.inspect import max_step_rows, package_report, report_lines, step_advice
from models.cli.output import check_folder, output_errors
from models.cli.release import release
from models.cli.runtimes import runtime_option, runtimes
from models.cli.user_code import load_function, parse_reference, user_code_errors
from models.export.progress import progress_to
from models.inspect.cost import DEVICES, THIS
from models.package.package import ModelPackage
from models.runtime.stderr import suppress_stderr
from models.zoo import load_zoo, open_model, zoo_names, zoo_record


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Export, list, inspect and release models."""


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
    place, attribute = parse_reference(function)
    check_folder(out)
    tell = StepLines()
    tell("loading TensorFlow, some seconds")
    # Only this command needs TensorFlow. Imported before the user's file, so that a missing
    # TensorFlow is reported as such, and its messages on import are suppressed.
    from models.export.exporter import export_model

    tell(f"running {function}()")
    build = load_function(place, attribute)
    with user_code_errors(f"{function}()"), progress_to(tell):
        built = build()
    if isinstance(built, ModelPackage):
        if name is not None or any((batch_size, train, personal, reconstruct, metrics)):
            raise ConfigError(
                f"{function} returns a finished package: give its options to its export_model, "
                "not to this command"
            )
        package = built
    else:
        try:
            with progress_to(tell):
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
    tell(f"writing {out}")
    with output_errors(out):
        package.save(out)
    click.echo(
        f"{out}: {package.spec.name}, {package.spec.size:,} parameters{_parts(package)}, "
        f"program {len(package.program):,} bytes, digest {package.digest[:12]}"
    )
    if limit := max_step_rows(package.spec):
        click.echo(step_advice(limit))


def _parts(package: ModelPackage) -> str:
    """Returns the numbers of the model that are not in θ."""
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
    """Show the content of a package: a folder, or the name of a model in the zoo.

    Loads the program into every TFLite interpreter installed here, or only into --runtime, and
    shows which accept it. TensorFlow, which takes seconds to load, is tried only if named or alone.
    Estimates memory and time of training on a device.
    """
    package = open_model(model)
    # Suppresses messages of the interpreters; their errors are exceptions.
    with suppress_stderr():
        costs = cost_report(package, device, rows, runtime)  # a damaged program may crash runtimes
        report = package_report(package, runtime) | costs
    if as_json:
        click.echo(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        click.echo("\n".join([*report_lines(report), *cost_lines(report)]))


cli.add_command(release)

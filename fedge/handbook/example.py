"""`fedge example`: experiments with real data, to run at once."""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from fedge.console import command_errors
from fedge.errors import ConfigError, did_you_mean
from fedge.files import write_whole
from fedge.handbook.shipped import shipped

_LICENCES = "data/LICENSES.md"
#: A notebook names its data relative to its own folder.
_DATA_OF_NOTEBOOK = re.compile(r"\.\./data/([\w.-]+)")


@dataclass(frozen=True)
class Example:
    """One experiment, or a notebook.

    Attributes:
        name: its file, relative to the folder of all examples.
        description: of one line.
        files: that it names, and those that they name; relative to the same folder.
        command: that runs it.
    """

    name: str
    description: str
    files: tuple[str, ...]
    command: str


def examples() -> dict[str, Example]:
    """Returns the examples by name: scenarios, then grids of them, then notebooks."""
    base = shipped("examples")
    scenarios = {p.stem: _read(p, base, "fleet run") for p in sorted(base.glob("*.yaml"))}
    grids = sorted(base.glob("experiments/*.yaml"))
    notebooks = sorted(base.glob("notebooks/*.ipynb"))
    return (
        scenarios
        | {path.stem: _read(path, base, "experiment run") for path in grids}
        | {path.stem: _read_notebook(path, base) for path in notebooks}
    )


def _read(path: Path, base: Path, command: str) -> Example:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    files = tuple(_named(document, path.parent, base))
    name = path.relative_to(base).as_posix()
    return Example(name, str(document.get("description", "")), files, f"fedge {command}")


def _read_notebook(path: Path, base: Path) -> Example:
    text = path.read_text(encoding="utf-8")
    files = tuple(dict.fromkeys(f"data/{name}" for name in _DATA_OF_NOTEBOOK.findall(text)))
    description = json.loads(text)["metadata"]["fedge"]["description"]
    return Example(path.relative_to(base).as_posix(), description, files, "jupyter lab")


def _named(document: Any, folder: Path, base: Path) -> list[str]:
    """Returns the files that a document in `folder` names, and those that they name."""
    found = []
    for name in _files(document, folder):
        file = Path(posixpath.normpath(folder / name))
        found.append(file.relative_to(base).as_posix())
        if file.suffix == ".yaml":
            inner = yaml.safe_load(file.read_text(encoding="utf-8"))
            found += _named(inner, file.parent, base)
    return found


def _files(value: Any, folder: Path) -> list[str]:
    """Returns the values anywhere in a document that are files of the examples' folder."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [name for inner in value for name in _files(inner, folder)]
    is_file = isinstance(value, str) and "/" in value and (folder / value).is_file()
    return [value] if is_file else []


@click.command()
@click.argument("name", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    default=Path("examples"),
    show_default=True,
    help="Folder to write to.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@command_errors
def cli(name: str | None, out: Path, as_json: bool) -> None:
    """Write an example, its data and its licences into a folder; without NAME, list the examples.

    `fedge fleet run` runs it, `fedge experiment run` a grid, Jupyter a notebook. An existing file
    is kept if it is the same, and never overwritten.
    """
    known = examples()
    if name is None:
        _list(known, as_json)
        return
    if name not in known:
        hint = did_you_mean(name, list(known))
        raise ConfigError(f"no example {name[:80]!r}: {hint}`fedge example` lists them")
    files = _write(known[name], out)
    if as_json:
        click.echo(json.dumps({"files": [str(path) for path in files]}))
        return
    for path, is_new in files.items():
        click.echo(f"{'wrote' if is_new else 'kept '} {path}")
    click.echo(f"next: {known[name].command} {out / known[name].name}")


def _list(known: dict[str, Example], as_json: bool) -> None:
    if as_json:
        rows = [{"name": name, "description": e.description} for name, e in known.items()]
        click.echo(json.dumps(rows))
        return
    width = max(map(len, known))
    for name, example in known.items():
        click.echo(f"{name:{width}}  {example.description}")
    click.echo("\n`fedge example NAME --out DIR` writes one, and says what runs it.")


def _write(example: Example, folder: Path) -> dict[Path, bool]:
    """Writes the files that are not there; returns all, and whether each was written."""
    source = shipped("examples")
    names = [*example.files, *([_LICENCES] if example.files else []), example.name]
    contents = {folder / name: (source / name).read_bytes() for name in dict.fromkeys(names)}
    kept = {path for path, data in contents.items() if _has(path, data)}
    changed = [path for path in contents if path not in kept and path.exists()]
    if changed:
        raise ConfigError(f"{changed[0]} exists and is another: choose an empty folder with --out")
    for path, data in contents.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path.parent} cannot be made: {error.strerror}") from error
        if path not in kept:
            write_whole(path, data, 0o644)
    return {path: path not in kept for path in contents}


def _has(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data

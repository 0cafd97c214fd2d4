"""Guesses: which columns or arrays of a file are a model's inputs and target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from edge_agent.data.table import PLACEHOLDER
from edge_agent.first_config.look import LOOKED_AT, Array, Column, Look
from fedge.yaml_config import as_yaml
from models.package.spec import ModelSpec, TensorSpec

_UNIT = re.compile(r"\s*(\(.*\)|\[.*\])\s*$")
_GROUPS = (
    "client",
    "recording",
    "session",
    "subject",
    "user",
    "person",
    "device",
    "site",
    "run",
    "trial",
    "participant",
    "patient",
    "sitzung",
    "messung",
    "group",
)
#: What may stand behind such a name: `session_id`, `Subject No`.
_GROUP_ENDS = ("id", "nr", "no", "number", "name")
#: A file of fewer rows shows no order.
_FEW_ROWS = 20
_LABELS = ("label", "target", "class", "activity", "y")


@dataclass(eq=False)
class Guess:
    """Guess of what is to be written about the data.

    Attributes:
        inputs: per input its columns, or its array.
        targets: per target its column or array.
        ignore_case: targets whose classes are written in another case.
        time: the column of times.
        length: readings in a window; 0: each row is one of the model.
        groups: columns that may tell recordings apart.
        doubts: what a person has to look at, by the key that it is about.
    """

    inputs: dict[str, list[str] | str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    ignore_case: set[str] = field(default_factory=set)
    time: Column | None = None
    length: int = 0
    groups: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)


def guess(found: Look, spec: ModelSpec | None) -> Guess:
    """Returns the best guess for a model, or for none in particular."""
    if found.config.format == "npz":
        return _of_arrays(found.arrays, spec)
    made = _of_columns(found.columns, spec)
    if made.groups:
        wanted = as_yaml({"group": made.groups[0]})
        made.doubts["group"] = f"are these recordings of their own? Then write {wanted}"
    if order := _order(found, made):
        made.doubts["split"] = order
    return made


def _order(found: Look, made: Guess) -> str:
    """Returns in words that the rows are sorted by a label; empty: they are not."""
    for column in found.columns:
        count = len(column.values)
        is_label = column.name in made.targets.values() and 2 * count <= found.rows
        if not is_label or found.rows < _FEW_ROWS or column.changes > count - 1:
            continue
        is_sorted = count > 1
        if is_sorted or found.rows == LOOKED_AT:
            seen = f"is sorted by {column.name}"
            if not is_sorted:
                seen = f"begins with {found.rows:,} rows of one {column.name}: is it sorted by it?"
            return (
                f"the file {seen}; the latest rows are held out, and would be of one label: "
                "`split: stratified` holds out some of each"
            )
    return ""


# -- columns -------------------------------------------------------------------------------------


def _of_columns(columns: Sequence[Column], spec: ModelSpec | None) -> Guess:
    made = Guess()
    times = [column for column in columns if column.kind == "time"]
    made.time = times[0] if times else None
    made.groups = [c.name for c in columns if _is_group(c.name)]
    if spec is None:
        free = [c.name for c in columns if c.kind == "number" and c.name not in made.groups]
        labels = [c.name for c in columns if _plain(c.name) in _LABELS and c.kind != "time"]
        made.targets = {"target": labels[0]} if labels else {}
        made.inputs = {"": [name for name in free if name not in labels]}
        return made
    taken: set[str] = set()
    for target in spec.targets:
        _target(made, target, columns, spec, taken)
    for tensor in spec.inputs:
        _input(made, tensor, columns, spec, taken)
    return made


def _target(
    made: Guess,
    target: TensorSpec,
    columns: Sequence[Column],
    spec: ModelSpec,
    taken: set[str],
) -> None:
    """Chooses the column of a target: by its name, by its classes, or what is left over."""
    wanted = (*target.features, target.name.removeprefix("target_"), *_LABELS)
    inputs = {_plain(name) for tensor in spec.inputs for name in tensor.features}
    free = [c for c in columns if c.name not in taken and c.kind in ("number", "text")]
    free = [c for c in free if _plain(c.name) not in inputs]
    if target.classes:
        free = [c for c in free if _fits(c, target)]
    else:
        free = [c for c in free if c.kind == "number"]
    named = [c for name in wanted for c in free if _plain(c.name) == _plain(name)]
    others = [c for c in free if c.name not in made.groups]
    texts = [c for c in others if c.kind == "text"]
    chosen = (named or texts or others[-1:])[:1]
    if not chosen:
        made.targets[target.name] = PLACEHOLDER
        made.doubts[target.name] = "no column looks like it"
        return
    column = chosen[0]
    taken.add(column.name)
    made.targets[target.name] = column.name
    if not named and not texts:
        made.doubts[target.name] = "a guess: is this what is to be learned?"
    if target.units:
        unit = f"the model learns it in {target.units[0]}; scale and offset convert another unit"
        made.doubts[target.name] = "; ".join(filter(None, (made.doubts.get(target.name), unit)))
    if target.classes and column.kind == "text" and not set(column.values) <= set(target.classes):
        made.ignore_case.add(target.name)


def _fits(column: Column, target: TensorSpec) -> bool:
    """Whether all that is in a column may be a class."""
    names = {name.casefold() for name in target.classes}
    if column.kind == "text":
        return {value.casefold() for value in column.values} <= names
    numbers = {float(value.replace(",", ".")) for value in column.values}
    return numbers <= set(map(float, range(len(target.classes)))) or (
        {value.casefold() for value in column.values} <= names
    )


def _input(
    made: Guess,
    tensor: TensorSpec,
    columns: Sequence[Column],
    spec: ModelSpec,
    taken: set[str],
) -> None:
    """Chooses the columns of an input: by the names of its features, or all that are left."""
    left = [c for c in columns if c.name not in taken and c.kind == "number"]
    needed = prod(tensor.shape)
    by_name = [_called(name, columns) for name in tensor.features]
    found = [column.name for column in by_name if column is not None]
    windows = len(tensor.shape) > 1 and len(spec.inputs) == 1
    if len(found) != len(tensor.features) or not found:
        rest = [c.name for c in left if c.name not in made.groups]
        last = tensor.shape[-1] if windows else needed
        found = rest if len(rest) in (needed, last) else []
        if found:
            made.doubts[tensor.name] = "taken in the order of the file: is this the model's order?"
    if windows and found and needed % len(found) == 0 and len(found) < needed:
        made.length = needed // len(found)
    elif len(found) != needed:
        names = ", ".join(tensor.features[:8]) or f"{needed} numbers"
        made.doubts[tensor.name] = f"name {needed} columns, in the model's order: {names}"
        found = [_close(name, columns) for name in tensor.features] or [PLACEHOLDER] * needed
    made.inputs[tensor.name] = found
    taken.update(found)


def _called(name: str, columns: Iterable[Column]) -> Column | None:
    matches = [c for c in columns if c.kind == "number" and _plain(c.name) == _plain(name)]
    return matches[0] if len(matches) == 1 else None


def _close(name: str, columns: Sequence[Column]) -> str:
    column = _called(name, columns)
    return column.name if column else PLACEHOLDER


def _is_group(name: str) -> bool:
    plain = _plain(name)
    return plain in _GROUPS or any(plain.removesuffix(end) in _GROUPS for end in _GROUP_ENDS)


def _plain(name: str) -> str:
    """Returns a name without its unit, its case and what is no letter or digit."""
    return re.sub(r"[\W_]+", "", _UNIT.sub("", name)).casefold()


# -- arrays --------------------------------------------------------------------------------------


def _of_arrays(arrays: Sequence[Array], spec: ModelSpec | None) -> Guess:
    made = Guess(groups=[one.name for one in arrays if _is_group(one.name)])
    if spec is None:
        made.inputs = {"": "x"}
        made.targets = {"target": "y"} if any(one.name == "y" for one in arrays) else {}
        return made
    taken: set[str] = set()
    for tensor in (*spec.targets, *spec.inputs):
        is_target = tensor in spec.targets
        default = ("y", tensor.name) if is_target else (tensor.name, "x")
        fitting = [
            one
            for one in arrays
            if one.name not in taken
            and one.name not in made.groups
            and _sides(one.shape) == _sides(tensor.shape)
            and (not one.is_text or bool(tensor.classes))
        ]
        named = [one for name in default for one in fitting if one.name == name]
        chosen = (named or fitting)[:1]
        name = chosen[0].name if chosen else PLACEHOLDER
        taken.add(name)
        if not chosen:
            shape = ", ".join(("rows", *map(str, tensor.shape)))
            made.doubts[tensor.name] = f"no array of shape ({shape}) is left"
        elif not named:
            made.doubts[tensor.name] = "the only guess by its shape"
        if is_target:
            made.targets[tensor.name] = name
        else:
            made.inputs[tensor.name] = name
    return made


def _sides(shape: tuple[int, ...]) -> list[int]:
    return [side for side in shape if side != 1]

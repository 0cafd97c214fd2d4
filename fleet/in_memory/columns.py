"""Arrays of a person, fitted to the columns of a model: names, shapes, types and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from edge_agent.data.table import Array
from fedge.errors import DataError, did_you_mean
from models.package.spec import ModelSpec, TensorSpec

#: Names that stand for the only input, and for the only target.
INPUT, TARGET = "x", "y"
WEIGHT = "weight"
_SHOWN = 8


def read_columns(
    spec: ModelSpec, given: Any, where: str, *, targets: bool = True
) -> dict[str, Array]:
    """Returns an array for each column of a model: its inputs, its targets, and `weight` if given.

    Numbers keep their type, and arrays their memory where the shape allows.

    Args:
        spec: of the model.
        given: `(x, y)`, `(x, y, weight)`, `x` alone, or arrays by name: names of inputs and
            targets, `x` and `y` where there is one of them, `weight`, or a column for each of the
            only input's numbers, by the names of its features where it has them. `x` and `y` may
            be mappings themselves, or lists in the model's order.
        where: what `given` is, for messages: "client-3".
        targets: whether the model's targets are needed.

    Raises:
        DataError: an array is missing, or does not fit; says what the model takes.
    """
    named = _by_name(spec, given, where)
    wanted = (*spec.inputs, *spec.targets) if targets else spec.inputs
    columns = {tensor.name: _column(tensor, named, spec, where) for tensor in wanted}
    if WEIGHT in named and targets:
        columns[WEIGHT] = _fitted(named[WEIGHT], TensorSpec(WEIGHT), spec, where)
    rows = {name: len(array) for name, array in columns.items()}
    if len(set(rows.values())) > 1:
        told = ", ".join(f"{name} has {count:,}" for name, count in rows.items())
        raise DataError(f"{where}: all arrays need the same number of rows: {told}")
    return columns


def _by_name(spec: ModelSpec, given: Any, where: str) -> dict[str, Any]:
    """Returns what is given by name; see `read_columns`."""
    if is_mapping(given):
        named = dict(given.items())
    elif isinstance(given, tuple | list) and not _is_numbers(given, spec):
        if not 1 <= len(given) <= 3:
            raise DataError(f"{where}: {len(given)} arrays, expected (x, y) or (x, y, weight)")
        named = dict(zip((INPUT, TARGET, WEIGHT), given, strict=False))
    else:
        named = {INPUT: given}
    for short, tensors in ((INPUT, spec.inputs), (TARGET, spec.targets)):
        if short in named and not _is_own_name(short, spec):
            named |= _spread(named.pop(short), tensors, short, where)
    return named


def _is_numbers(given: Sequence[Any], spec: ModelSpec) -> bool:
    """Whether a list is rows of numbers, not arrays."""
    if not given or isinstance(given[0], np.ndarray) or is_mapping(given[0]):
        return False
    return isinstance(given, list) and np.ndim(given[0]) == len(spec.inputs[0].shape)


def _is_own_name(short: str, spec: ModelSpec) -> bool:
    return any(short == tensor.name for tensor in (*spec.inputs, *spec.targets))


def _spread(value: Any, tensors: Sequence[TensorSpec], short: str, where: str) -> dict[str, Any]:
    """Returns the arrays of `x`, or of `y`, by the names of the model's inputs, or targets."""
    if value is None:
        return {}
    if is_mapping(value):
        return dict(value.items())
    what = "inputs" if short == INPUT else "targets"
    names = [tensor.name for tensor in tensors]
    if not tensors:
        raise DataError(f"{where}: the model has no {what}: leave out {short}")
    if len(tensors) == 1:
        return {names[0]: value}
    if isinstance(value, list | tuple) and len(value) == len(tensors):
        return dict(zip(names, value, strict=True))
    raise DataError(
        f"{where}: the model has {len(tensors)} {what}: give {short} as a mapping with "
        f"{', '.join(map(repr, names))}, or a list in this order"
    )


def _column(tensor: TensorSpec, named: Mapping[str, Any], spec: ModelSpec, where: str) -> Array:
    if tensor.name in named:
        return _fitted(named[tensor.name], tensor, spec, where)
    if tensor.name.startswith("target_") and tensor.name[7:] in named:
        return _fitted(named[tensor.name[7:]], tensor, spec, where)
    if parts := _parts(tensor, named, spec):
        return _fitted(np.stack(parts, -1), tensor, spec, where)
    wanted = [t.name for t in (*spec.inputs, *spec.targets)]
    hint = did_you_mean(tensor.name, list(map(str, named)))
    shown = ", ".join(map(str, list(named)[:_SHOWN])) or "nothing"
    raise DataError(
        f"{where}: no array for {tensor.name!r}; {hint}given: {shown}; the model {spec.name} "
        f"takes {', '.join(wanted)}"
    )


def _parts(tensor: TensorSpec, named: Mapping[str, Any], spec: ModelSpec) -> list[Array]:
    """Returns the columns of a table that are an input: by name, else all that nothing else is."""
    features: Sequence[str] = tensor.features
    if not features and spec.inputs == (tensor,):
        others = {TARGET, WEIGHT, *(target.name for target in spec.targets)}
        features = [name for name in named if name not in others]
    if len(features) != prod(tensor.shape) or not all(name in named for name in features):
        return []
    columns = [np.asarray(named[name]) for name in features]
    return columns if all(column.ndim == 1 for column in columns) else []


def _fitted(given: Any, tensor: TensorSpec, spec: ModelSpec, where: str) -> Array:
    """Returns an array of shape (n, *tensor.shape)."""
    try:
        array: Array = np.asarray(given)
    except ValueError as error:
        raise DataError(
            f"{where}: {tensor.name} is no array, its rows differ in length: make them alike"
        ) from error
    wanted = f"(rows{''.join(f', {side}' for side in tensor.shape)})"
    if array.dtype.kind in "USO" and tensor.classes and array.ndim:
        array = _classes(array, tensor, where)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: {tensor.name} holds {array.dtype}, expected numbers of shape {wanted}"
        )
    # (n, 28, 28) serves (28, 28, 1): an axis of length 1 is a matter of taste.
    if array.ndim and _sides(array.shape[1:]) == _sides(tensor.shape):
        return array.reshape(len(array), *tensor.shape)
    raise DataError(
        f"{where}: {tensor.name} has shape {array.shape}, the model {spec.name} takes {wanted}"
        f"{_shape_advice(array, tensor, spec)}"
    )


def _sides(shape: Sequence[int]) -> list[int]:
    return [side for side in shape if side != 1]


def _shape_advice(array: Array, tensor: TensorSpec, spec: ModelSpec) -> str:
    name, classes = tensor.name, spec.class_count(tensor)
    if classes and array.shape[1:] == (*tensor.shape, classes):
        return f": one-hot? give classes, {name}.argmax(-1)"
    if array.shape == tensor.shape and tensor.shape:
        return f": one row alone? give {name}[None]"
    if array.ndim and len(array) and array.size == len(array) * prod(tensor.shape):
        return f": {name}.reshape({', '.join(map(str, (-1, *tensor.shape)))})"
    return ""


def _classes(texts: Array, tensor: TensorSpec, where: str) -> Array:
    """Returns the index of each class that is named by its text."""
    known, places = np.unique(texts.astype(str), return_inverse=True)
    index = {name: number for number, name in enumerate(tensor.classes)}
    if unknown := [name for name in known.tolist() if name not in index]:
        raise DataError(
            f"{where}: {tensor.name} has the class {unknown[0][:40]!r}; "
            f"{did_you_mean(unknown[0], tensor.classes)}classes: "
            f"{', '.join(tensor.classes[:_SHOWN])}{', …' if len(tensor.classes) > _SHOWN else ''}"
        )
    numbers = np.array([index[name] for name in known.tolist()], np.int32)
    found: Array = numbers[places].reshape(texts.shape)
    return found


def is_mapping(value: Any) -> bool:
    """Whether something holds arrays by name: a mapping, or a table like those of pandas."""
    return isinstance(value, Mapping) or (hasattr(value, "columns") and hasattr(value, "items"))


def row_count(arrays: Mapping[str, Any]) -> int:
    """Returns the number of rows of arrays whose model is not known yet.

    Args:
        arrays: by name of an argument; a value may be arrays by name, or a list of arrays, one for
            each input.

    Raises:
        DataError: their numbers of rows differ, or something is no array.
    """
    counts: dict[str, int] = {}
    lists = {}
    for name, value in arrays.items():
        if is_mapping(value):
            counts |= {
                f"{name}[{key!r}]": _count(f"{name}[{key!r}]", a) for key, a in value.items()
            }
        elif isinstance(value, list | tuple) and all(isinstance(a, np.ndarray) for a in value):
            lists[name] = value
        else:
            counts[name] = _count(name, value)
    for name, parts in lists.items():
        # One array an input, or one a row: the other arguments tell.
        within = {len(part) if part.ndim else 0 for part in parts}
        is_of_inputs = len(within) == 1 and within <= set(counts.values())
        counts[name] = within.pop() if is_of_inputs else len(parts)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count:,}" for name, count in counts.items())
        raise DataError(f"partition: all arrays need the same number of rows: {told}")
    return next(iter(counts.values()), 0)


def _count(name: str, value: Any) -> int:
    try:
        return len(value)
    except TypeError as error:
        raise DataError(
            f"partition: {name} is a {type(value).__name__}, expected an array of rows"
        ) from error

"""Columns: the names by which statistics ask for the numbers of a model's inputs and targets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from models.package.spec import ModelSpec, TensorSpec


@dataclass(frozen=True)
class Column:
    """One feature of an input or a target, or all numbers of one whose features have no names.

    Attributes:
        tensor: of the spec.
        feature: place of the feature among `features` of the tensor; None: all of its numbers.
    """

    tensor: TensorSpec
    feature: int | None = None


def named_columns(spec: ModelSpec) -> dict[str, Column]:
    """Returns the columns of a model's data by name, in the order of the spec.

    A column is called as its feature, or as its tensor where features have no names. A name that
    occurs twice has its tensor's before it (`left.x`), and twice in one tensor its place
    (`left.0`).
    """
    found = [
        Column(tensor, place)
        for tensor in spec.columns
        for place in (range(len(tensor.features)) if tensor.features else (None,))
    ]
    counts = Counter(map(_plain_name, found))
    return {
        _plain_name(column) if counts[_plain_name(column)] == 1 else _full_name(column): column
        for column in found
    }


def _plain_name(column: Column) -> str:
    tensor = column.tensor
    return tensor.name if column.feature is None else tensor.features[column.feature]


def _full_name(column: Column) -> str:
    tensor, place = column.tensor, column.feature
    if place is None:
        return tensor.name
    is_unique = tensor.features.count(tensor.features[place]) == 1
    return f"{tensor.name}.{tensor.features[place] if is_unique else place}"

"""The names by which statistics ask for a model's numbers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from models.package.columns import named_columns
from models.package.spec import ModelSpec, TensorSpec
from models.zoo import load_zoo, zoo_names

SPEC = load_zoo("house_price").spec


def names(*inputs: TensorSpec, **changes: Any) -> list[str]:
    return list(named_columns(msgspec.structs.replace(SPEC, inputs=inputs, **changes)))


def test_columns_are_called_as_their_features_and_tensors_without_features_as_themselves() -> None:
    assert list(named_columns(SPEC)) == ["median_income", "rooms_per_household", "target"]
    column = named_columns(SPEC)["rooms_per_household"]
    assert (column.tensor.name, column.feature) == ("features", 1)
    assert named_columns(SPEC)["target"].feature is None
    assert names(TensorSpec("image", (28, 28))) == ["image", "target"]


def test_names_of_every_number_of_a_row_are_columns_too() -> None:
    lags = TensorSpec("lags", (2, 2), features=("a1", "b1", "a2", "b2"))
    assert names(lags) == ["a1", "b1", "a2", "b2", "target"]


def test_a_name_that_occurs_twice_has_its_tensor_s_before_it() -> None:
    left = TensorSpec("left", (3,), features=("x", "y", "target"))
    right = TensorSpec("right", (2,), features=("x", "z"))
    assert names(left, right) == ["left.x", "y", "left.target", "right.x", "z", "target"]


def test_a_name_that_occurs_twice_in_one_tensor_has_its_place() -> None:
    assert names(TensorSpec("left", (2,), features=("x", "x"))) == ["left.0", "left.1", "target"]


@pytest.mark.parametrize("name", zoo_names())
def test_every_number_of_the_zoo_s_models_is_in_one_column(name: str) -> None:
    spec: ModelSpec = load_zoo(name).spec
    columns = named_columns(spec).values()
    for tensor in spec.columns:
        mine = [column.feature for column in columns if column.tensor == tensor]
        assert mine == ([*range(len(tensor.features))] if tensor.features else [None])

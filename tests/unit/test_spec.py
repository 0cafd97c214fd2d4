"""ModelSpec: a spec that exists is consistent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from models.errors import ModelError
from models.parameters import Layout, ParameterSpec
from models.spec import ModelSpec, TensorSpec


def make_spec(**changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "name": "pump_wear",
        "inputs": (TensorSpec("sensors", (4,)),),
        "target": TensorSpec("target"),
        "outputs": (TensorSpec("prediction"),),
        "loss": "mean_squared_error",
        "metrics": ("mae",),
        "batch_size": 8,
        "layout": Layout((ParameterSpec("kernel", (4, 1)), ParameterSpec("bias", (1,)))),
    }
    return ModelSpec(**(fields | changes))


def test_size_and_fingerprint_are_the_layouts() -> None:
    spec = make_spec()
    assert spec.size == 5
    assert spec.fingerprint == spec.layout.fingerprint


def test_a_spec_survives_json_byte_for_byte() -> None:
    window = TensorSpec("window", (9, 2), features=("a", "b"), mean=(0.1, 2.0), std=(1.0, 3.0))
    spec = make_spec(inputs=(window, TensorSpec("ids", (3,), "int32")), source="somewhere")
    text = spec.to_json()
    again = ModelSpec.from_json(text)
    assert again == spec
    assert again.to_json() == text
    assert text.endswith(b"\n")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        ({"name": "two words"}, "must be a plain identifier"),
        ({"name": "größe"}, "must be a plain identifier"),
        ({"name": "x" * 65}, "must be a plain identifier"),
        ({"name": "x", "shape": (3, 0)}, r"has shape \(3, 0\)"),
        ({"name": "x", "shape": (100_000, 100_000)}, "has shape"),
        ({"name": "x", "shape": (3,), "mean": (0.0,)}, "must be given together"),
        ({"name": "x", "shape": (3,), "mean": (0.0,) * 2, "std": (1.0,) * 2}, "2 means for 3"),
        ({"name": "x", "mean": (float("nan"),), "std": (1.0,)}, "means must be finite"),
        ({"name": "x", "mean": (0.0,), "std": (0.0,)}, "stds positive"),
    ],
)
def test_impossible_tensors_are_refused(tensor: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TensorSpec(**tensor)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": ()}, "at least one input"),
        ({"outputs": ()}, "at least one input and one output"),
        ({"inputs": (TensorSpec("theta"),)}, "must differ"),
        ({"inputs": (TensorSpec("x"), TensorSpec("x"))}, "must differ"),
        ({"metrics": ("sensors",)}, "must differ"),
        ({"metrics": ("loss",)}, "must differ"),
        ({"target": TensorSpec("label")}, "must be named 'target', not 'label'"),
        ({"target": TensorSpec("target", mean=(0.0,), std=(1.0,))}, "target has no mean"),
        ({"batch_size": 0}, "batch_size 0 is outside"),
        ({"batch_size": 65_537}, "batch_size 65537 is outside"),
    ],
)
def test_impossible_specs_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_spec(**changes)


def broken(*path: Any, value: Any) -> bytes:
    """The JSON of a good spec with one thing changed."""
    document = json.loads(make_spec().to_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "spec.json: "),
        (b"{", "spec.json: "),
        (b"[" * 100_000, "spec.json: "),
        (broken("color", value="red"), "unknown field `color`"),
        (broken("format", value=2), r"\$\.format"),
        (broken("batch_size", value="8"), r"\$\.batch_size"),
        (broken("target", "dtype", value="float64"), r"\$\.target\.dtype"),
        (broken("inputs", 0, "shape", value=[4.5]), r"\$\.inputs\[0\]\.shape"),
        (broken("layout", "parameters", value=[]), "holds 0 parameters"),
        (b" " * (1 << 20) + make_spec().to_json(), "limit 1048576"),
    ],
)
def test_json_that_is_no_spec_is_refused_with_its_place(data: bytes, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        ModelSpec.from_json(data)


def test_the_origin_begins_the_message() -> None:
    with pytest.raises(ModelError, match=r"^models/pump/spec.json: "):
        ModelSpec.from_json(b"nonsense", "models/pump/spec.json")


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        make_spec().batch_size = 9  # type: ignore[misc]
    assert msgspec.structs.replace(make_spec(), batch_size=9).batch_size == 9

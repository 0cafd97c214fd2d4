"""ModelSpec: validation and JSON."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fedge.errors import ModelError
from learning.vector.metrics import MetricSpec
from learning.vector.parameters import Layout, ParameterSpec
from models.package.spec import ModelSpec, TensorSpec


def make_spec(**changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "name": "pump_wear",
        "inputs": (TensorSpec("sensors", (4,)),),
        "targets": (TensorSpec("target"),),
        "outputs": (TensorSpec("prediction"),),
        "loss": "mean_squared_error",
        "metrics": (MetricSpec("mae"),),
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
        *(
            ({"name": "x", "mean": (0.0,), "std": (std,)}, "stds finite and above 0")
            for std in (0.0, -1.0, float("nan"), float("inf"))
        ),
        ({"name": "x", "shape": (9, 3), "features": ("a", "b")}, "2 names of .* expected 3 or 27"),
        ({"name": "x", "features": ("a", "b")}, "2 names of features for 1 features, expected 1"),
        ({"name": "x", "shape": (3,), "units": ("g", "m")}, "2 units .* expected 1 or 3"),
        ({"name": "x", "dtype": "int32", "classes": ("a", "b", "a")}, "class names must differ"),
    ],
)
def test_invalid_tensors_are_rejected(tensor: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TensorSpec(**tensor)


def test_features_may_name_each_number_of_a_row_with_one_unit() -> None:
    names = tuple("abcdef")
    assert TensorSpec("x", (2, 3), features=names).features == names
    assert TensorSpec("x", (2, 3), features=names[:3], units=("g",)).units == ("g",)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": ()}, "at least one input"),
        ({"outputs": ()}, "at least one input and one output"),
        ({"inputs": (TensorSpec("theta"),)}, "must differ"),
        ({"inputs": (TensorSpec("x"), TensorSpec("x"))}, "must differ"),
        ({"metrics": (MetricSpec("sensors"),)}, "must differ"),
        ({"metrics": (MetricSpec("loss"),)}, "must differ"),
        ({"targets": (TensorSpec("label"),)}, r"must be named \['target'\], not \['label'\]"),
        ({"targets": (TensorSpec("target", missing=0.0),)}, "targets have no missing"),
        ({"name": "../../evil"}, "model name '../../evil' must be 1 to 64 of the characters"),
        *(({"name": name}, "model name") for name in ("", "na me", "a\n", "..", "-x", "x" * 65)),
        (
            {"targets": (TensorSpec("target", (), "int32", classes=("a", "b", "c")),)},
            "3 class names for the 2 classes of 'target'",
        ),
        ({"batch_size": 0}, "batch_size 0 is outside"),
        ({"batch_size": 65_537}, "batch_size 65537 is outside"),
    ],
)
def test_invalid_specs_are_rejected(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_spec(**changes)


def broken(*path: Any, value: Any) -> bytes:
    """Returns the JSON of a valid spec with one value changed."""
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
        (broken("targets", 0, "dtype", value="float64"), r"\$\.targets\[0\]\.dtype"),
        (broken("inputs", 0, "shape", value=[4.5]), r"\$\.inputs\[0\]\.shape"),
        (broken("layout", "parameters", value=[]), "holds 0 parameters"),
        (b" " * (1 << 20) + make_spec().to_json(), "limit 1048576"),
    ],
)
def test_invalid_json_is_rejected_with_its_key(data: bytes, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        ModelSpec.from_json(data)


def test_the_origin_begins_the_message() -> None:
    with pytest.raises(ModelError, match=r"^models/pump/spec.json: "):
        ModelSpec.from_json(b"nonsense", "models/pump/spec.json")


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        make_spec().batch_size = 9  # type: ignore[misc]
    assert msgspec.structs.replace(make_spec(), batch_size=9).batch_size == 9


def test_tracked_slices_cover_theta_and_the_personal_part() -> None:
    layout = Layout(
        (ParameterSpec("w", (3,)), ParameterSpec("mean", (2,), True), ParameterSpec("b", (1,)))
    )
    personal = Layout((ParameterSpec("head", (4,)), ParameterSpec("variance", (2,), True)))
    spec = make_spec(layout=layout, personal=personal)
    assert (spec.size, spec.whole_size) == (6, 12)
    assert spec.tracked == (slice(3, 5), slice(10, 12))
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_a_fingerprint_depends_on_tracked() -> None:
    one, two = (Layout((ParameterSpec("w", (3,), tracked),)) for tracked in (False, True))
    assert one.fingerprint != two.fingerprint


def test_a_target_has_as_many_classes_as_its_output() -> None:
    kind, text = TensorSpec("target", (), "int32"), TensorSpec("target", (5,), "int32")
    cases: list[tuple[TensorSpec, list[tuple[int, ...]], int]] = [
        (kind, [(4,)], 4),
        (text, [(5, 7)], 7),
        (kind, [()], 2),  # one number: yes or no
        (text, [(5,)], 2),  # several questions at once
        (kind, [(8,), (8,)], 2),  # embeddings of a pair, alike or not
        (TensorSpec("target"), [()], 0),
    ]
    for target, shapes, count in cases:
        outputs = tuple(TensorSpec(f"out_{n}", shape) for n, shape in enumerate(shapes))
        assert make_spec(targets=(target,), outputs=outputs).class_count(target) == count
    several = tuple(TensorSpec(f"target_{name}", (), "int32") for name in ("kind", "worn"))
    outputs = (TensorSpec("kind", (4,)), TensorSpec("worn"))
    spec = make_spec(targets=several, outputs=outputs)
    assert [spec.class_count(target) for target in several] == [4, 2]


def test_an_input_has_the_named_classes() -> None:
    word, steps = (
        TensorSpec("word", (), "int32", classes=("a", "b", "c")),
        TensorSpec("x", (), "int32"),
    )
    spec = make_spec(inputs=(word, steps))
    assert [spec.class_count(tensor) for tensor in spec.inputs] == [3, 0]


def test_several_targets_are_named_after_the_outputs() -> None:
    outputs = (TensorSpec("kind"), TensorSpec("age"))
    targets = (TensorSpec("target_kind"), TensorSpec("target_age"))
    assert make_spec(outputs=outputs, targets=targets).columns[1:] == targets
    with pytest.raises(ValueError, match="targets must be named"):
        make_spec(outputs=outputs, targets=targets[::-1])
    assert make_spec(targets=()).columns == make_spec().inputs


@pytest.mark.parametrize(
    "tensor",
    [{"name": "x", "missing": float("nan")}, {"name": "x", "dtype": "int32", "missing": 1.0}],
)
def test_missing_must_be_a_finite_float(tensor: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="missing must be a finite number"):
        TensorSpec(**tensor)

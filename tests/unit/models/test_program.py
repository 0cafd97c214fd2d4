"""Programs on both runtimes: results checked by hand, any number of rows, invalid arguments."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fedge.errors import ModelError, TrainingError
from learning.vector.metrics import MetricSpec
from learning.vector.parameters import F32, Layout, ParameterSpec
from models.package.package import ModelPackage
from models.package.signatures import expected_signatures
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.interpreters import available_runtimes
from models.runtime.program import Program
from models.runtime.rows import plan_calls
from models.runtime.wheels import DEVICE_RUNTIMES
from models.zoo import load_zoo
from tests.rows import labelled

BATCH = 256  # of house_price
THETA = np.array([0.5, -0.25, 2.0], np.float32)  # two slopes and a bias


@pytest.fixture
def program(package: ModelPackage, runtime: str) -> Program:
    return Program(package.program, package.spec, runtime=runtime)


def rows(count: int) -> tuple[dict[str, F32], F32]:
    rng = np.random.default_rng(count)
    x = rng.standard_normal((count, 2)).astype(np.float32)
    return {"features": x}, rng.standard_normal(count).astype(np.float32)


def by_hand(theta: F32, x: F32, y: F32, weight: F32) -> tuple[float, NDArray[np.float64], float]:
    """Returns sum of losses, gradient of their weighted mean, sum of absolute errors."""
    design = np.c_[x, np.ones(len(x))]
    error = design @ theta.astype(np.float64) - y
    gradient = 2 * (design * (weight * error)[:, None]).sum(0) / weight.sum()
    return float((weight * error**2).sum()), gradient, float((weight * np.abs(error)).sum())


@pytest.mark.parametrize("count", [1, 2, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
def test_gradient_of_any_number_of_rows(program: Program, count: int) -> None:
    inputs, target = rows(count)
    got = program.gradient(THETA, labelled(inputs, target))
    loss, gradient, mae = by_hand(THETA, inputs["features"], target, np.ones(count, np.float32))
    assert got.vector.dtype == np.float32
    assert got.vector == pytest.approx(gradient, rel=1e-4, abs=1e-5)
    assert got.sums.weight == count
    assert got.sums.loss == pytest.approx(loss, rel=1e-5)
    assert got.sums.metrics == {"mae": pytest.approx(mae, rel=1e-5)}


@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH, BATCH + 1])
def test_evaluate_and_predict_any_number_of_rows(program: Program, count: int) -> None:
    inputs, target = rows(count)
    sums = program.evaluate(THETA, labelled(inputs, target))
    predicted = program.predict(THETA, inputs)["prediction"]
    expected = inputs["features"] @ THETA[:2] + THETA[2]
    assert predicted.shape == (count,)
    assert predicted == pytest.approx(expected, abs=1e-5)
    assert sums.weight == count
    assert sums.loss == pytest.approx(float(((expected - target) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("count", [5, BATCH, BATCH + 3])
def test_row_weights_scale_loss_and_gradient(program: Program, count: int) -> None:
    inputs, target = rows(count)
    weight = np.random.default_rng(1).integers(0, 3, count).astype(np.float32)
    weight[0] = 1
    got = program.gradient(THETA, labelled(inputs, target, weight))
    sums = program.evaluate(THETA, labelled(inputs, target, weight))
    loss, gradient, mae = by_hand(THETA, inputs["features"], target, weight)
    assert got.vector == pytest.approx(gradient, rel=1e-4, abs=1e-5)
    for found in (got.sums, sums):
        assert found.weight == weight.sum()
        assert found.loss == pytest.approx(loss, rel=1e-5)
        assert found.metrics == {"mae": pytest.approx(mae, rel=1e-5)}


def test_rows_of_weight_0_do_not_count(program: Program) -> None:
    inputs, target = rows(10)
    weight = np.array([1] * 5 + [0] * 5, np.float32)
    clean = program.gradient(THETA, labelled(inputs, target, weight))
    inputs["features"][5:] = 1e6
    assert np.array_equal(
        program.gradient(THETA, labelled(inputs, target, weight)).vector, clean.vector
    )


def test_rows_without_weight_are_a_training_error(program: Program) -> None:
    inputs, target = rows(0)
    with pytest.raises(TrainingError, match="no rows to learn from"):
        program.gradient(THETA, labelled(inputs, target))
    inputs, target = rows(BATCH + 4)
    with pytest.raises(TrainingError, match="no rows to learn from"):
        program.gradient(THETA, labelled(inputs, target, np.zeros(BATCH + 4, np.float32)))


def test_a_batch_of_weight_0_among_others_adds_nothing(program: Program) -> None:
    inputs, target = rows(BATCH + 7)
    weight = np.ones(BATCH + 7, np.float32)
    weight[:BATCH] = 0
    got = program.gradient(THETA, labelled(inputs, target, weight))
    alone = program.gradient(
        THETA, labelled({"features": inputs["features"][BATCH:]}, target[BATCH:])
    )
    assert np.isfinite(got.vector).all()
    assert got.vector == pytest.approx(alone.vector, rel=1e-6)


def test_results_are_not_overwritten_by_the_next_call(program: Program) -> None:
    inputs, target = rows(BATCH)
    first = program.gradient(THETA, labelled(inputs, target)).vector
    kept = first.copy()
    program.gradient(-THETA, labelled(inputs, target))
    assert np.array_equal(first, kept)


def test_other_dtypes_and_strided_rows_are_accepted(program: Program) -> None:
    inputs, target = rows(BATCH)
    expected = program.gradient(THETA, labelled(inputs, target)).vector
    doubled = np.repeat(inputs["features"].astype(np.float64), 2, axis=0)[::2]
    got = program.gradient(THETA, labelled({"features": doubled}, target.astype(np.float64)))
    assert np.array_equal(got.vector, expected)


@pytest.mark.parametrize("count", [7, BATCH])
def test_arrays_that_do_not_fit_the_spec_are_rejected(program: Program, count: int) -> None:
    inputs, target = rows(count)
    x = inputs["features"]
    for theta in (np.zeros(4, np.float32), np.zeros(3)):
        with pytest.raises(ModelError, match=r"expected float32 of \(3,\)"):
            program.gradient(theta, labelled(inputs, target))  # type: ignore[arg-type]
    for wrong in (x[:1], x[:, :1], x[:-1], x[..., None]):
        with pytest.raises(ModelError, match=r"'(features|target)' has shape"):
            program.evaluate(THETA, labelled({"features": wrong}, target))
    with pytest.raises(ModelError, match="needs the array 'features'; given: x"):
        program.predict(THETA, {"x": x})
    with pytest.raises(ModelError, match=r"'target' has shape \(\d+, 1\)"):
        program.gradient(THETA, labelled(inputs, target[:, None]))
    with pytest.raises(ModelError, match="weight has shape"):
        program.gradient(THETA, labelled(inputs, target, np.ones(count + 1, np.float32)))
    # and the program still works
    assert program.evaluate(THETA, labelled(inputs, target)).weight == count


def test_both_runtimes_agree() -> None:
    if not set(DEVICE_RUNTIMES) <= set(available_runtimes()):
        pytest.skip("only one runtime is installed")
    package = load_zoo("wearable_activity")
    rng = np.random.default_rng(2)
    inputs = {"window": rng.standard_normal((40, 100, 6)).astype(np.float32)}
    target = rng.integers(0, 7, 40).astype(np.int32)
    one, two = (
        Program(package.program, package.spec, runtime=name).gradient(
            package.initial, labelled(inputs, target)
        )
        for name in DEVICE_RUNTIMES
    )
    assert np.linalg.norm(one.vector - two.vector) <= 1e-5 * np.linalg.norm(one.vector)
    assert one.sums.metrics == two.sums.metrics


# What does not load.


def other_layout() -> Layout:
    return Layout((ParameterSpec("kernel", (3, 1)), ParameterSpec("bias", (1,))))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layout": other_layout()}, r"gradient input 'theta' is float32 \(3,\), .* \(4,\)"),
        ({"batch_size": 8}, r"gradient input 'features' is float32 \(256, 2\), .* \(8, 2\)"),
        ({"inputs": (TensorSpec("rooms", (2,)),)}, "gradient inputs are .*'features'"),
        (
            {"inputs": (TensorSpec("features", (2,), "int32"),)},
            "gradient input 'features' is float32",
        ),
        ({"targets": (TensorSpec("target", (), "int32"),)}, "gradient input 'target' is float32"),
        (
            {"metrics": (MetricSpec("mae"), MetricSpec("mse"))},
            "gradient outputs are .*the spec needs .*'mse'",
        ),
        ({"outputs": (TensorSpec("prediction", (1,)),)}, r"predict output 'prediction' is"),
    ],
)
def test_a_program_that_does_not_fit_its_spec_is_rejected(
    package: ModelPackage, runtime: str, changes: dict[str, object], says: str
) -> None:
    spec = msgspec.structs.replace(package.spec, **changes)
    with pytest.raises(ModelError, match=f"does not fit its spec: {says}"):
        Program(package.program, spec, runtime=runtime)


# Damage behind an intact mark is not tested: tflite_runtime does not check and may crash.
@pytest.mark.parametrize("data", [b"", b"garbage", bytes(1000)])
def test_garbage_is_rejected_as_program(package: ModelPackage, runtime: str, data: bytes) -> None:
    with pytest.raises(ModelError, match=f"{runtime} .* cannot load the program"):
        Program(data, package.spec, runtime=runtime)


def test_an_unknown_runtime_is_rejected_with_the_known_ones(package: ModelPackage) -> None:
    with pytest.raises(ModelError, match="'onnx' is unknown; known: tflite-runtime, ai-edge-li"):
        Program(package.program, package.spec, runtime="onnx")


def test_a_program_names_its_runtime_and_version(program: Program, runtime: str) -> None:
    assert program.runtime.startswith(f"{runtime} 2.")


def test_expected_signatures_follow_the_spec() -> None:
    spec = ModelSpec(
        name="m",
        inputs=(TensorSpec("a", (2, 3)), TensorSpec("b", (), "int32")),
        targets=(TensorSpec("target", (5,), "int32"),),
        outputs=(TensorSpec("prediction", (5, 7)),),
        loss="l",
        metrics=(MetricSpec("accuracy"),),
        batch_size=4,
        layout=other_layout(),
    )
    theta = {"theta": ((4,), "float32")}
    inputs = {"a": ((4, 2, 3), "float32"), "b": ((4,), "int32")}
    label = {"target": ((4, 5), "int32"), "weight": ((4,), "float32")}
    number = ((), "float32")
    assert expected_signatures(spec) == {
        "gradient": (
            theta | inputs | label,
            {"loss": number, "gradient": ((4,), "float32"), "accuracy": number},
        ),
        "evaluate": (
            theta | inputs | label,
            {"loss_sum": number, "weight_sum": number, "accuracy": number},
        ),
        "predict": (theta | inputs, {"prediction": ((4, 5, 7), "float32")}),
    }


def test_programs_load_from_the_folder_they_ship_in(tmp_path: Path, runtime: str) -> None:
    package = load_zoo("house_price")
    package.save(tmp_path)
    data = (tmp_path / "program.tflite").read_bytes()
    assert Program(data, package.spec, runtime=runtime).spec == package.spec


@pytest.mark.parametrize(
    ("rows", "sizes", "expected"),
    [
        (0, (32,), []),
        (5, (32,), [(0, 5, 32)]),
        (70, (32,), [(0, 32, 32), (32, 32, 32), (64, 6, 32)]),
        (40, (32, 8), [(0, 32, 32), (32, 8, 8)]),
        (43, (32, 8), [(0, 32, 32), (32, 8, 8), (40, 3, 8)]),
        (30, (32, 1), [(0, 30, 32)]),  # two rows of padding, not thirty calls
        (2, (32, 1), [(0, 1, 1), (1, 1, 1)]),
        (
            600,
            (32, 256),
            [(0, 256, 256), (256, 256, 256), (512, 32, 32), (544, 32, 32), (576, 24, 32)],
        ),
    ],
)
def test_rows_are_cut_into_calls_with_little_padding(
    rows: int, sizes: tuple[int, ...], expected: list[tuple[int, int, int]]
) -> None:
    assert list(plan_calls(rows, sizes)) == expected


def test_one_call_takes_all_rows_where_they_belong_together() -> None:
    assert list(plan_calls(2, (32, 1), in_one=True)) == [(0, 2, 32)]
    assert list(plan_calls(40, (32, 8, 64), in_one=True)) == [(0, 40, 64)]
    assert list(plan_calls(70, (32, 8), in_one=True)) == list(plan_calls(70, (32, 8)))


def test_signatures_of_the_main_batch_size_have_no_suffix() -> None:
    spec = msgspec.structs.replace(load_zoo("house_price").spec, more_batch_sizes=(8,))
    names = expected_signatures(spec)
    assert list(names) == [
        *("gradient", "evaluate", "predict"),
        *("gradient_8", "evaluate_8", "predict_8"),
    ]
    assert names["evaluate_8"][0]["weight"] == ((8,), "float32")

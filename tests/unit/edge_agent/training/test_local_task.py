"""One job of a plan: what is trained, uploaded and remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from broker.protocol.messages import BlobRef, Cohort, RoundPlan
from broker.protocol.seeds import codec_seed, stream
from edge_agent.data.dataset import (
    DataConfig,
    InputSource,
    LocalDataset,
    TargetSource,
    load_dataset,
)
from edge_agent.machine.device_state import DeviceState, model_key, rounded
from edge_agent.machine.pending_update import LocalReport, LocalUpdate
from edge_agent.training.local_device import LocalModel
from edge_agent.training.local_task import run_local_task
from edge_agent.training.trainer import train
from fedge.errors import CodecError, DeclinedError, ModelError, TrainingError
from learning.algorithms.training import training_plan
from learning.codecs.registry import CODECS
from learning.vector.parameters import F32, Layout
from models.runtime.program import Program
from models.zoo import load_zoo

AGENT = "pi-1"
ROWS = 40
THETA = np.array([0.5, -0.25, 2.0], np.float32)
BLOB = BlobRef(sha256="0" * 64, size=12, chunks=1)


@pytest.fixture(scope="module")
def model() -> LocalModel:
    package = load_zoo("house_price")
    return LocalModel(Program(package.program, package.spec), package.personal)


@pytest.fixture(scope="module")
def personal_model() -> LocalModel:
    """The line's slopes are shared, its offset is personal."""
    package = load_zoo("house_price")
    slopes, offset = package.spec.layout.parameters
    spec = msgspec.structs.replace(
        package.spec, layout=Layout((slopes,)), personal=Layout((offset,))
    )
    return LocalModel(Program(package.program, spec), np.full(1, 7.0, np.float32))


@pytest.fixture(scope="module")
def dataset() -> LocalDataset:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((ROWS + 10, 2)).astype(np.float32)
    arrays = {"features": x, "target": x.sum(1)}
    rows = np.arange(ROWS + 10)
    return LocalDataset(arrays, rows[:ROWS], rows[ROWS:], rows, {})


def plan(**changes: Any) -> RoundPlan:
    facts: dict[str, Any] = {
        "session": "s1",
        "coordinator_instance": "c1",
        "round_id": 1,
        "state": "open",
        "version": 0,
        "blobs": {"weights": BLOB},
        "package": "0" * 64,
        "fingerprint": "0" * 16,
        "cohort": Cohort(),
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.05},
        "codec": "float32",
        "seed": 11,
    }
    return RoundPlan(**(facts | changes))


def update(
    model: LocalModel, dataset: LocalDataset, state: DeviceState | None = None, **changes: Any
) -> LocalUpdate:
    blobs = changes.pop("vectors", {"weights": THETA[: model.program.spec.size]})
    of = plan(**changes)
    result = run_local_task(of, blobs, state or DeviceState(), model, dataset, AGENT)
    assert isinstance(result, LocalUpdate)
    return result


def decoded(result: LocalUpdate, seed: int = 11) -> dict[str, F32]:
    """Returns the update as the coordinator reads it."""
    found, start = {}, 0
    for name, part in result.vectors.items():
        body = result.body[start : start + part.bytes]
        codec = CODECS.make(part.codec)
        found[name] = codec.decode(body, part.size, codec_seed(seed, AGENT))
        start += part.bytes
    assert start == len(result.body)
    return found


def test_an_update_is_what_training_gives(model: LocalModel, dataset: LocalDataset) -> None:
    result = update(model, dataset)
    rng = stream(11, AGENT, 0)
    expected = train(
        model.program, THETA, dataset.part("train"), training_plan(plan().training), rng
    )
    assert decoded(result)["delta"].tobytes() == expected.delta.tobytes()
    assert result.sums == expected.sums
    assert result.num_examples == ROWS
    assert (result.state.model, result.state.session) == (model_key(model.program.spec), "s1")
    assert result.state.algorithm == "fedavg"
    assert (result.state.residuals, result.state.vectors) == ({}, {}), "nothing was lost"


def test_a_task_that_is_repeated_gives_the_same_bits(
    model: LocalModel, dataset: LocalDataset
) -> None:
    first, second = (update(model, dataset, codec="int8") for _ in range(2))
    assert first.body == second.body
    assert update(model, dataset, codec="int8", seed=12).body != first.body


def test_what_the_codec_lost_is_part_of_the_next_update(
    model: LocalModel, dataset: LocalDataset
) -> None:
    exact = decoded(update(model, dataset))["delta"]
    first = update(model, dataset, codec="int8")
    lost = exact - decoded(first)["delta"]
    kept = first.state.residuals["delta"].vector
    assert kept.tobytes() == rounded(lost).vector.tobytes()
    second = decoded(update(model, dataset, first.state))["delta"]
    assert second.tobytes() == (exact + kept).tobytes()


@pytest.mark.parametrize(
    "other", [{"model": "f" * 16}, {"session": "s0"}], ids=["model", "session"]
)
def test_the_residual_of_another_model_or_run_is_left_out(
    model: LocalModel, dataset: LocalDataset, other: dict[str, Any]
) -> None:
    facts: dict[str, Any] = {"model": model_key(model.program.spec), "session": "s1"} | other
    state = DeviceState(**facts, residuals={"delta": rounded(np.ones(3, np.float32))})
    exact = decoded(update(model, dataset))["delta"]
    assert decoded(update(model, dataset, state))["delta"].tobytes() == exact.tobytes()


# -- algorithms with a state ------------------------------------------------------------------


def scaffold(
    model: LocalModel, dataset: LocalDataset, state: DeviceState, control: F32, **changes: Any
) -> LocalUpdate:
    vectors = {"weights": THETA, "control": control}
    blobs = {"weights": BLOB, "control": BLOB}
    return update(
        model, dataset, state, algorithm="scaffold", blobs=blobs, vectors=vectors, **changes
    )


def test_scaffold_advances_its_control_variate_by_what_arrives(
    model: LocalModel, dataset: LocalDataset
) -> None:
    control = np.array([0.1, -0.2, 0.3], np.float32)
    result = scaffold(model, dataset, DeviceState(), control, codec="int8")
    assert list(result.vectors) == ["delta", "control"]
    arrived = decoded(result)
    assert result.state.vectors["control"].tobytes() == arrived["control"].tobytes()
    assert list(result.state.residuals) == ["delta"], "a control variate needs no residual"
    again = scaffold(model, dataset, result.state, control, codec="int8")
    expected = result.state.vectors["control"] + decoded(again)["control"]
    assert again.state.vectors["control"].tobytes() == expected.tobytes()


def test_scaffold_derives_its_control_variate_from_steps_and_rate(
    model: LocalModel, dataset: LocalDataset
) -> None:
    """Δc_i = -c + (x - y) / (K η), K = 6 steps of 16 rows at most, 2 epochs."""
    control = np.array([0.1, -0.2, 0.3], np.float32)
    arrived = decoded(scaffold(model, dataset, DeviceState(), control))
    expected = -control - arrived["delta"] / (6 * 0.05)
    assert arrived["control"] == pytest.approx(expected, rel=1e-5)


def test_the_state_of_another_algorithm_is_left_out(
    model: LocalModel, dataset: LocalDataset
) -> None:
    control = np.zeros(3, np.float32)
    state = scaffold(model, dataset, DeviceState(), control, codec="int8").state
    plain = update(model, dataset, state, codec="int8")
    assert plain.state.vectors == {}
    assert plain.state.algorithm == "fedavg"
    fresh = scaffold(model, dataset, plain.state, control, codec="int8")
    assert fresh.state.vectors["control"].any()


@pytest.mark.parametrize("length", [0, 1, 2, 4, 1000])
def test_a_shared_vector_of_another_length_is_declined(
    model: LocalModel, dataset: LocalDataset, length: int
) -> None:
    with pytest.raises(DeclinedError) as caught:
        scaffold(model, dataset, DeviceState(), np.zeros(length, np.float32))
    assert caught.value.reason == "weights"
    assert str(caught.value) == f"blob control has {length} numbers, scaffold shares 3"


def test_a_shared_vector_that_is_missing_is_declined(
    model: LocalModel, dataset: LocalDataset
) -> None:
    with pytest.raises(DeclinedError, match="blob control has 0 numbers, scaffold shares 3"):
        update(model, dataset, algorithm="scaffold")


@pytest.mark.parametrize("length", [1, 2, 4])
def test_stored_state_of_another_length_is_left_out(
    model: LocalModel, dataset: LocalDataset, length: int
) -> None:
    control = np.array([0.1, -0.2, 0.3], np.float32)
    odd = np.ones(length, np.float32)
    state = DeviceState(
        model_key(model.program.spec),
        "s1",
        {"delta": rounded(odd)},
        "scaffold",
        {"control": odd},
        odd,
    )
    fresh = scaffold(model, dataset, DeviceState(), control, codec="int8")
    result = scaffold(model, dataset, state, control, codec="int8")
    assert result.body == fresh.body
    assert result.state.vectors["control"].tobytes() == fresh.state.vectors["control"].tobytes()
    assert result.state.personal is None


# -- personal layers --------------------------------------------------------------------------


def test_personal_layers_are_trained_kept_and_never_uploaded(
    personal_model: LocalModel, dataset: LocalDataset
) -> None:
    result = update(personal_model, dataset, codec="int8")
    assert {name: part.size for name, part in result.vectors.items()} == {"delta": 2}
    assert result.state.personal is not None
    assert result.state.personal.shape == (1,)
    rng = stream(11, AGENT, 0)
    start = np.array([*THETA[:2], 7.0], np.float32)
    expected = train(
        personal_model.program, start, dataset.part("train"), training_plan(plan().training), rng
    )
    assert result.state.personal.tobytes() == expected.theta[2:].tobytes()


def test_a_device_evaluates_with_its_own_personal_layers(
    personal_model: LocalModel, dataset: LocalDataset
) -> None:
    state = update(personal_model, dataset).state
    of = plan(phase="evaluate")
    blobs = {"weights": THETA[:2]}
    result = run_local_task(of, blobs, state, personal_model, dataset, AGENT)
    assert isinstance(result, LocalReport)
    assert state.personal is not None
    whole = np.concatenate([THETA[:2], state.personal])
    assert result.sums == personal_model.program.evaluate(whole, dataset.part("test"))
    before = run_local_task(of, blobs, DeviceState(), personal_model, dataset, AGENT)
    assert isinstance(before, LocalReport)
    assert before.sums.loss != result.sums.loss


# -- what cannot be done ----------------------------------------------------------------------


def test_training_that_diverges_on_absurd_data_names_column_and_line(
    model: LocalModel, tmp_path: Path
) -> None:
    lines = [f"{3 + n % 2},5,200000\n" for n in range(10)]
    lines[4] = "150000,5,200000\n"  # taken, but 95,000 standard deviations off
    (tmp_path / "data.csv").write_text("income,rooms,price\n" + "".join(lines))
    cfg = DataConfig(
        path="data.csv",
        inputs={"features": InputSource(columns=("income", "rooms"))},
        target=TargetSource(column="price", scale=1e-5),
    )
    data = load_dataset(cfg, model.program.spec, tmp_path)
    training = {"epochs": 20, "batch_size": 4, "learning_rate": 0.1}
    with pytest.raises(TrainingError) as caught:
        update(model, data, training=training)
    assert (
        str(caught.value)
        .replace(f"{tmp_path}/", "")
        .endswith(
            "training diverged; column 'income' has 9.53e+04 after scaling (data.csv: line 6), "
            "where models take numbers around 0: a fault of the data, or another unit?"
        )
    )


def test_training_that_diverges_on_good_data_names_the_learning_rate(
    model: LocalModel, dataset: LocalDataset
) -> None:
    training = {"epochs": 200, "batch_size": 4, "learning_rate": 100}
    with pytest.raises(TrainingError, match=r"learning_rate 100\.0 may be too large"):
        update(model, dataset, training=training)


def test_a_delta_that_is_not_finite_is_never_encoded(
    model: LocalModel, dataset: LocalDataset
) -> None:
    with pytest.raises(TrainingError, match="diverged"):
        update(model, dataset, training={"epochs": 100, "learning_rate": 1000})


def test_a_value_that_the_codec_cannot_hold_is_named(
    model: LocalModel, dataset: LocalDataset
) -> None:
    far = {"weights": THETA * np.float32(1e9)}
    with pytest.raises(CodecError, match="65504"):
        update(model, dataset, vectors=far, codec="float16", training={"learning_rate": 0.5})


def test_weights_of_another_length_are_refused(model: LocalModel, dataset: LocalDataset) -> None:
    with pytest.raises(ModelError, match=r"expected float32 of \(3,\)"):
        update(model, dataset, vectors={"weights": THETA[:2]})


@pytest.mark.parametrize("reason", ["phase", "algorithm", "codec"])
def test_what_is_not_known_is_declined(
    model: LocalModel, dataset: LocalDataset, reason: str
) -> None:
    changes: dict[str, Any] = {reason: "unheard-of"}
    with pytest.raises(DeclinedError) as caught:
        update(model, dataset, **changes)
    assert caught.value.reason == reason


def test_a_cancelled_task_gives_nothing(model: LocalModel, dataset: LocalDataset) -> None:
    for phase in ("train", "evaluate"):
        with pytest.raises(TrainingError, match="cancelled"):
            run_local_task(
                plan(phase=phase),
                {"weights": THETA},
                DeviceState(),
                model,
                dataset,
                AGENT,
                lambda: True,
            )


@pytest.mark.parametrize(("batch_size", "declines"), [(32, False), (33, True), (0, True)])
def test_steps_of_more_rows_than_batch_normalization_sees_are_declined(
    dataset: LocalDataset, batch_size: int, declines: bool
) -> None:
    package = load_zoo("house_price")
    kernel, bias = package.spec.layout.parameters
    layout = Layout((kernel, msgspec.structs.replace(bias, tracked=True)))
    spec = msgspec.structs.replace(package.spec, layout=layout)
    model = LocalModel(Program(package.program, spec), package.personal)
    # The program takes 256 rows a call.
    arrays = {name: np.resize(a, (310, *a.shape[1:])) for name, a in dataset.arrays.items()}
    many = np.arange(310)
    larger = LocalDataset(arrays, many[:300], many[300:], many, {})
    training = {"epochs": 1, "batch_size": batch_size and batch_size + 224}
    if not declines:
        assert update(model, larger, training=training).num_examples == 300
        return
    with pytest.raises(DeclinedError, match=r"256 rows at most, and a step of (257|300) rows") as e:
        update(model, larger, training=training)
    assert e.value.reason == "training"
    assert update(model, dataset, training={"epochs": 1, "batch_size": 0}).num_examples == ROWS

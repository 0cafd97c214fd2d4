"""Units of targets: in text, in JSON, and on the outputs of a released model."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.records.records import RoundRecord, new_record
from coordinator.report import round_line
from models.cli.model_card import model_card
from models.package.spec import ModelSpec, TensorSpec
from models.package.units import (
    metric_text,
    metrics_in_units,
    output_units,
    target_units,
    with_units,
)
from models.runtime.inference import Release
from models.zoo import load_zoo

PRICE = TensorSpec("target", features=("price",), units=("USD",), mean=(2e5,), std=(1e5,))
SPEC = msgspec.structs.replace(load_zoo("house_price").spec, targets=(PRICE,))


def two_outputs() -> ModelSpec:
    wear = TensorSpec("target_wear", units=("mm",), mean=(0.0,), std=(0.5,))
    kind = TensorSpec("target_kind", (), "int32", classes=("ok", "bad"))
    outputs = (TensorSpec("wear"), TensorSpec("kind", (2,)))
    return msgspec.structs.replace(SPEC, targets=(wear, kind), outputs=outputs)


def test_errors_are_told_in_the_unit_of_the_target() -> None:
    units = target_units(SPEC)
    assert metric_text(units, "mae", 0.5312) == "0.5312 (53,120 USD)"
    assert metric_text(units, "mae", 0.0000123456) == "0.0000 (1.235 USD)"
    assert metric_text(units, "unseen_rmse", 0.25) == "0.2500 (25,000 USD)"
    for name in ("mse", "accuracy", "loss", "r2"):
        assert metric_text(units, name, 0.5) == "0.5000"
    assert metrics_in_units(units, {"mae": 0.5, "r2": 0.9}) == {
        "mae": {"value": 50_000.0, "unit": "USD"}
    }


def test_a_unit_without_a_scale_stands_behind_the_number() -> None:
    kilowatts = msgspec.structs.replace(SPEC, targets=(TensorSpec("target", units=("kW",)),))
    assert metric_text(target_units(kilowatts), "mae", 0.5) == "0.5000 kW"
    houses = target_units(load_zoo("house_price").spec)
    assert metric_text(houses, "mae", 0.5312) == "0.5312 x 100,000 USD"


def test_each_output_has_its_own_unit() -> None:
    units = target_units(two_outputs())
    assert metric_text(units, "wear_mae", 0.5) == "0.5000 (0.25 mm)"
    assert metric_text(units, "kind_mae", 0.5) == "0.5000"
    mixed = TensorSpec("target", (2,), units=("mm", "h"))
    assert target_units(msgspec.structs.replace(SPEC, targets=(mixed,))) == {}


def test_outputs_of_a_release_have_what_their_targets_have() -> None:
    (output,) = with_units(SPEC.outputs, SPEC)
    assert (output.name, output.units, output.mean) == ("prediction", ("USD",), (2e5,))
    assert metric_text(output_units([output]), "mae", 0.5) == "0.5000 (50,000 USD)"
    wear, kind = with_units(two_outputs().outputs, two_outputs())
    assert (wear.std, kind.std) == ((0.5,), ())


def test_the_model_card_tells_errors_in_units_and_how_the_output_is_scaled() -> None:
    release = Release(
        name="houses",
        numbers="float32",
        inputs=SPEC.inputs,
        outputs=with_units(SPEC.outputs, SPEC),
        batch_size=1,
        loss="mean_squared_error",
        sha256="0" * 64,
        verdict="good",
        federation_metrics={"mae": 0.53},
        metrics={"mae": 0.5},
        released_metrics={"mae": 0.51},
        rows=10,
    )
    card = model_card(release)
    assert "| mae | 0.5300 (53,000 USD) |" in card
    assert "| mae | 0.5000 (50,000 USD) | 0.5100 (51,000 USD) |" in card
    assert "price (USD); the file gives (value - mean) / std, mean 200000, std 100000" in card


def test_the_line_of_a_round_has_the_unit() -> None:
    record: RoundRecord = msgspec.structs.replace(
        new_record(1, 1, 2), status="committed", loss=0.4, metrics={"mae": 0.5}
    )
    assert " · mae 0.5000 (50,000 USD) · " in round_line(record, target_units(SPEC))
    assert " · mae 0.5000 · " in round_line(record)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (TensorSpec("target", (), "int32", mean=(0.0,), std=(1.0,)), "classes neither mean nor"),
        (TensorSpec("target", missing=0.0), "targets have no missing"),
    ],
)
def test_classes_have_no_scale_and_targets_no_missing_values(target: TensorSpec, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        msgspec.structs.replace(SPEC, targets=(target,))

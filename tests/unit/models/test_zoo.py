"""Zoo: records, packages and training steps on both runtimes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedge.errors import ModelError
from models.package.spec import ModelSpec
from models.runtime.interpreters import available_runtimes
from models.runtime.program import Program
from models.runtime.rows import Array
from models.runtime.wheels import DEVICE_RUNTIMES
from models.zoo import PACKAGES, load_zoo, open_model, zoo_names, zoo_record

every_model = pytest.mark.parametrize("name", zoo_names())
every_runtime = pytest.mark.parametrize("runtime", DEVICE_RUNTIMES)


def classes_of(spec: ModelSpec) -> tuple[str, ...]:
    return spec.targets[0].classes if spec.targets else ()


@every_model
def test_a_model_has_a_record_and_a_package_of_its_name(name: str) -> None:
    record, spec = zoo_record(name), load_zoo(name).spec
    assert record.name == spec.name == name
    assert (record.source, record.inputs) == (spec.source, spec.inputs)
    assert (record.classes, record.batch_size) == (classes_of(spec), spec.batch_size)
    assert record.task
    assert "\n" not in record.task


def test_every_package_is_listed() -> None:
    assert sorted(path.name for path in PACKAGES.iterdir()) == zoo_names()


@every_model
def test_programs_are_small(name: str) -> None:
    # Short recurrent layers come unrolled, a copy of the cell for every step and its gradient;
    # longer ones as loops over blocks of steps.
    recurrent = {"road_traffic": 130_000, "next_character": 90_000}
    assert len(load_zoo(name).program) <= recurrent.get(name, 48_000)


@every_model
@every_runtime
def test_a_few_steps_lower_the_loss(name: str, runtime: str) -> None:
    if runtime not in available_runtimes():
        pytest.skip(f"{runtime} is not installed")
    package = load_zoo(name)
    spec = package.spec
    program = Program(package.program, spec, runtime=runtime)
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {t.name: rng.random((40, *t.shape), np.float32) for t in spec.inputs}
    if name == "next_character":
        inputs["text"] = rng.integers(0, len(classes_of(spec)), (40, 40)).astype(np.int32)
    for target in spec.targets:
        inputs[target.name] = rng.integers(0, len(target.classes) or 5, (40, *target.shape))
    theta = package.initial.copy()
    first = program.evaluate(theta, inputs).loss
    for _ in range(20):
        gradient = program.gradient(theta, inputs).vector
        # Steps of one length: a loss in square cycles has a steeper slope than one in nats.
        theta -= np.float32(0.02) * gradient / np.linalg.norm(gradient)
    assert program.evaluate(theta, inputs).loss < first


def test_the_published_number_of_parameters() -> None:
    assert load_zoo("handwritten_digit").spec.size == 199_210  # McMahan et al. 2017, section 3
    assert load_zoo("house_price").spec.size == 3
    assert not load_zoo("house_price").initial.any()


def test_a_missing_finding_differs_from_an_average_one() -> None:
    package = load_zoo("heart_disease")
    program, (patient,) = Program(package.program, package.spec), package.spec.inputs
    average = np.zeros((1, 13), np.float32)
    gaps = np.full((1, 13), patient.missing, np.float32)
    theta = package.initial.copy()
    theta[13:26] = 0  # what it counts whether a finding is there
    same = [program.predict(theta, {"patient": x})["prediction"][0] for x in (average, gaps)]
    assert same[0] == same[1]
    theta[13:26] = 0.1
    here, gone = (program.predict(theta, {"patient": x})["prediction"][0] for x in (average, gaps))
    assert np.log(here / (1 - here)) - np.log(gone / (1 - gone)) == pytest.approx(1.3, abs=1e-4)


def test_a_missing_input_does_not_change_the_prediction() -> None:
    package = load_zoo("audio_visual_digit")
    program, spec = Program(package.program, package.spec), package.spec
    rng = np.random.default_rng(0)
    both = {t.name: rng.random((5, *t.shape), np.float32) for t in spec.inputs}
    alone = {t.name: both | {t.name: np.full_like(both[t.name], t.missing)} for t in spec.inputs}

    def scores(inputs: dict[str, Array]) -> Array:
        digits = np.log(program.predict(package.initial, inputs)["prediction"])
        centred: Array = digits - digits.mean(-1, keepdims=True)
        return centred

    without_image, without_sound = scores(alone["image"]), scores(alone["sound"])
    assert scores(both) == pytest.approx(without_image + without_sound, abs=1e-4)
    neither = scores(alone["image"] | {"sound": alone["sound"]["sound"]})
    assert neither == pytest.approx(np.zeros((5, 10)), abs=1e-6)


def test_an_unknown_name_lists_the_known_ones() -> None:
    for function in (load_zoo, zoo_record):
        with pytest.raises(ModelError, match=r"no model 'resnet' .* it has: anomaly_autoencoder, "):
            function("resnet")
    with pytest.raises(ModelError, match="'resnet' is neither a package folder nor in the zoo"):
        open_model("resnet")


def test_a_misspelt_name_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_zoo("house_price").save(tmp_path / "p" / "custom")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"in the zoo; did you mean p/custom\? the zoo has: "):
        open_model("p/custm")
    monkeypatch.chdir(tmp_path / "p")
    with pytest.raises(ModelError, match=r"did you mean custom\? "):
        open_model("custm")
    with pytest.raises(ModelError, match=r"did you mean wearable_activity\? it has: "):
        load_zoo("wearable_activty")
    with pytest.raises(ModelError, match="in the zoo; the zoo has: "):
        open_model(str(tmp_path / "q" / "wearable_activity"))


def test_a_model_opens_by_name_or_folder(tmp_path: Path) -> None:
    package = open_model("house_price")
    package.save(tmp_path / "mine")
    assert open_model(str(tmp_path / "mine")).digest == package.digest


def test_the_zoo_needs_neither_tensorflow_nor_an_interpreter() -> None:
    absent = ["tensorflow", "keras", "tflite_runtime", "ai_edge_litert"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}));"
        "from models.zoo import *; [(load_zoo(name), zoo_record(name)) for name in zoo_names()]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

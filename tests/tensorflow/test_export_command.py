"""`fedge model export` of functions in files and modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedge.command import cli
from models.cli.user_code import load_function
from models.export.progress import progress_to
from models.package.package import load_package

SOURCE = """
import keras

def build():
    model = keras.Sequential(
        [keras.Input((4,), name="sensors"), keras.layers.Dense(3, activation="softmax")]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

def uncompiled():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

def nothing():
    pass

def broken():
    return {}["no such key"]
"""


#: Exports by itself; masked layers are unrolled, which takes long.
GRU = """
import keras
from models.export.exporter import export_model

def package():
    x = keras.Input((6, 2), name="x")
    hidden = keras.layers.GRU(2)(keras.layers.Masking(-9.0)(x))
    model = keras.Model(x, keras.layers.Dense(1)(hidden))
    model.compile(loss="mse")
    return export_model(model, name="gru", batch_size=(4, 2))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pump.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["model", "export", *arguments])


def test_a_function_in_a_file_is_exported(folder: Path) -> None:
    result = run(
        "pump.py:build", "--out", "out/pump_wear", "--batch-size", "8", "--batch-size", "2"
    )
    assert result.exit_code == 0, result.output
    package = load_package(folder / "out" / "pump_wear")
    assert (package.spec.name, package.spec.batch_sizes, package.spec.size) == (
        "pump_wear",
        (8, 2),
        15,
    )
    assert result.stdout.startswith("out/pump_wear: pump_wear, 15 parameters, program ")
    assert package.digest[:12] in result.stdout
    assert result.stderr == ""  # which is no terminal


def test_a_module_of_the_working_folder_is_exported(folder: Path) -> None:
    result = run("pump:build", "--out", "out", "--name", "pump")
    assert result.exit_code == 0, result.output
    assert load_package(folder / "out").spec.name == "pump"


def test_a_function_may_return_a_package(folder: Path) -> None:
    result = run("models.zoo.house_price:package", "--out", "out")
    assert result.exit_code == 0, result.output
    assert load_package(folder / "out").spec.name == "house_price"
    result = run("models.zoo.house_price:package", "--out", "out", "--name", "other")
    assert result.exit_code == 2
    assert "returns a finished package" in result.stderr


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("pump.py:uncompiled", "pump.py:uncompiled: model 'sequential"),
        ("pump.py:nothing", "expected a compiled keras.Model, got NoneType: return the model"),
        ("pump.py:broken", "failed: KeyError: 'no such key' (line 18 of "),
        ("pump.py:absent", "pump.py has no function 'absent'; it has: build, uncompiled, nothing"),
        ("no_such_module:build", "no module 'no_such_module' here"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_errors_are_one_line(reference: str, says: str) -> None:
    result = run(reference, "--out", "out")
    assert result.exit_code == 2
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert says in line
    assert result.stderr.splitlines()[-1] == line
    assert result.stdout == ""


def test_each_step_is_told_with_a_guess_of_the_time_that_is_left(folder: Path) -> None:
    (folder / "gru.py").write_text(GRU)
    told: list[str] = []
    with progress_to(told.append):
        package = load_function(folder / "gru.py", "package")()
    assert package.spec.batch_sizes == (4, 2)
    assert told[:2] == ["tracing gradient", "tracing evaluate"]
    assert told[5].startswith("tracing predict_2")
    assert re.fullmatch(r"converting [1-9],\d\d\d operators(, \d+ s or so)?", told[6])
    assert told[7:] == ["comparing the program with Keras"]

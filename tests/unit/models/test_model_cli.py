"""`fedge model` without TensorFlow; exporting itself is tested in tests/tensorflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedge.command import cli
from learning.vector.parameters import Layout
from models.cli.output import check_file, check_folder
from models.package.package import ModelPackage
from models.zoo import load_zoo, zoo_names


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["model", *arguments])


def test_list_shows_every_model_with_its_task() -> None:
    result = run("list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == zoo_names()
    assert "199,210 parameters" in result.stdout


def test_list_for_scripts() -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    package = load_zoo("house_price")
    assert rows["house_price"]["digest"] == package.digest
    assert rows["house_price"]["program_bytes"] == len(package.program)
    assert rows["house_price"]["parameters"] == 3
    assert "median house value" in rows["house_price"]["task"]


def test_inspect_shows_inputs_layout_and_signatures() -> None:
    result = run("inspect", "wearable_activity")
    assert result.exit_code == 0, result.output
    package = load_zoo("wearable_activity")
    for text in (
        f"{package.spec.size:,}",
        package.digest,
        package.spec.fingerprint,
        "movement/kernel",
        "wx, in rad/s, mean 0.0195, std 1.0119",
        "int32: PEN, ABD, FEL, IR, ER, TRAP, ROW",
        "gradient(theta float32[",
        "loads it (",
    ):
        assert text in result.stdout


def test_inspect_a_folder_for_scripts(tmp_path: Path) -> None:
    package = load_zoo("house_price")
    package.save(tmp_path)
    report = json.loads(run("inspect", str(tmp_path), "--json").stdout)
    assert report["digest"] == package.digest
    assert report["layout"][1] == {
        "name": "price/bias",
        "shape": [1],
        "offset": 2,
        "tracked": False,
        "personal": False,
    }
    assert report["inputs"][0]["units"] == ["10,000 USD", "rooms"]
    assert report["inputs"][0]["dtype"] == "float32"
    assert report["signatures"]["predict"]["outputs"] == {"prediction": "float32[256]"}


def test_inspect_shows_the_error_of_a_runtime_that_rejects_the_program(tmp_path: Path) -> None:
    load_zoo("house_price").save(tmp_path)
    (tmp_path / "program.tflite").write_bytes(load_zoo("wearable_activity").program)
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 0
    assert "does not fit its spec" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "resnet"], "'resnet' is neither a package folder nor in the zoo"),
        (["export", "absent.py:build", "--out", "o"], "absent.py: no such file"),
        (["release", "house_prise"], "in the zoo; did you mean house_price? the zoo has: anomaly"),
        *(([command, "x" * 300], "File name too long") for command in ("inspect", "release")),
        (["release", "house_price", "--int8", "--float16"], "--int8 and --float16: give one"),
        (["export", "model.py", "--out", "o"], "expected FILE.py:FUNCTION or MODULE:FUNCTION"),
        (["export", "model.py:", "--out", "o"], "expected FILE.py:FUNCTION or MODULE:FUNCTION"),
    ],
)
def test_errors_are_one_line(arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["release", "house_price", "--out", "file/a.tflite"], "file/a.tflite: Not a directory"),
        (["release", "house_price", "--out", "dir.tflite"], "dir.tflite: Is a directory"),
        (["export", "model.py:build", "--out", "file/new/a"], "file/new/a: Not a directory"),
    ],
)
def test_an_unwritable_out_is_rejected_before_computing(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "model.py").touch()
    (tmp_path / "dir.tflite").mkdir()
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr == f"error: --out {says}\n"  # nor is TensorFlow loaded


def test_checking_out_leaves_no_files(tmp_path: Path) -> None:
    kept = tmp_path / "kept.tflite"
    kept.write_bytes(b"model")
    check_file(kept)
    check_file(tmp_path / "new" / "a.tflite")
    check_folder(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_bytes() == b"model"


def fedge_without_tensorflow(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.modules.update(tensorflow=None, keras=None); "
        "from fedge.command import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_export_without_tensorflow_says_what_to_install() -> None:
    done = fedge_without_tensorflow(
        "model", "export", "models.zoo.house_price:package", "--out", "o"
    )
    assert done.returncode == 2
    assert "install fedge with its extra, fedge[export]" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["list"], ["inspect", "house_price"], ["inspect", "house_price", "--device=this"]]
)
def test_list_and_inspect_work_without_tensorflow_or_warnings(
    arguments: list[str],
) -> None:
    done = fedge_without_tensorflow("model", *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_inspect_marks_personal_and_tracked_tensors(
    tmp_path: Path,
) -> None:
    package = load_zoo("house_price")
    slopes, offset = package.spec.layout.parameters
    tracked = msgspec.structs.replace(offset, tracked=True)
    spec = msgspec.structs.replace(
        package.spec, layout=Layout((slopes,)), personal=Layout((tracked,))
    )
    zeros = np.zeros(3, np.float32)
    ModelPackage(spec, package.program, zeros[:2], zeros[2:]).save(tmp_path)
    done = run("inspect", str(tmp_path))
    (line,) = [line for line in done.stdout.splitlines() if "price/bias" in line]
    said = "price/bias 1, follows the data, never stepped, stays on the device"
    assert " ".join(line.split()[1:]) == said

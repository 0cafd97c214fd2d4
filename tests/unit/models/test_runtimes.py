"""Choice of the runtime, wheels per platform, and advice where none fits."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement

from fedge.command import cli
from fedge.errors import ModelError
from models.runtime import interpreters
from models.runtime.interpreters import (
    ENVIRONMENT,
    RUNTIMES,
    available_runtimes,
    find_runtime,
    this_platform,
)
from models.runtime.wheels import (
    DEVICE_RUNTIMES,
    WHEELS,
    Platform,
    install_advice,
    missing_wheel_reason,
)

ROOT = Path(__file__).parents[3]
DEBIAN_12 = (2, 36)


def platform(machine: str, minor: int, glibc: tuple[int, int] = DEBIAN_12) -> Platform:
    return Platform(machine, (3, minor), "glibc", glibc)


# What can be installed: pure.


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (platform("x86_64", 11), "pip install tflite-runtime 'numpy<2'"),
        (platform("aarch64", 11), "pip install tflite-runtime 'numpy<2'"),
        (platform("x86_64", 12), "pip install ai-edge-litert"),
        (platform("aarch64", 13), "pip install ai-edge-litert"),
        # Debian 11 on Arm: too old for the first, not for the second.
        (platform("aarch64", 11, (2, 31)), "pip install ai-edge-litert"),
        (platform("x86_64", 11, (2, 31)), "pip install tflite-runtime 'numpy<2'"),
    ],
    ids=str,
)
def test_common_devices_install_with_one_command(here: Platform, says: str) -> None:
    assert install_advice(here) == says


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (platform("armv7l", 11), ["tflite-runtime 'numpy<2'", "msgspec", "piwheels or apt"]),
        (
            platform("armv7l", 13),
            ["Python 3.8 to 3.11, this is 3.13", "Python 3.11, as in Debian 12", "64-bit system"],
        ),
        (platform("armv7l", 11, (2, 31)), ["needs glibc 2.34 on armv7l, this is 2.31", "newer"]),
        (platform("aarch64", 11, (2, 24)), ["needs glibc 2.27", "take a newer system"]),
        (platform("armv6l", 11), ["Armv6 (Raspberry Pi 1 and Zero)", "aarch64 or armv7l"]),
        (platform("riscv64", 13), ["no runtime has a wheel for riscv64"]),
        (platform("x86_64", 15), ["ai-edge-litert has wheels for Python 3.10 to 3.14", "3.11"]),
        (Platform("x86_64", (3, 11), "musl"), ["musl (Alpine)", "python:3.11-slim", "Debian 12"]),
        (Platform("aarch64", (3, 13), "musl"), ["musl (Alpine)"]),
        (Platform("arm64", (3, 11), ""), ["agents run on Linux"]),
    ],
    ids=str,
)
def test_other_devices_get_advice(here: Platform, says: list[str]) -> None:
    line = install_advice(here)
    assert all(part in line for part in says), line
    assert "\n" not in line
    assert len(f"no TFLite interpreter is installed here ({here}): {line}") <= 500


def test_the_reason_for_a_missing_wheel_is_named() -> None:
    assert missing_wheel_reason("tflite-runtime", platform("x86_64", 13)) == (
        "has wheels for Python 3.8 to 3.11, this is 3.13"
    )
    assert (
        missing_wheel_reason("ai-edge-litert", platform("armv7l", 11)) == "has no wheel for armv7l"
    )
    assert missing_wheel_reason("tensorflow", platform("armv7l", 11)) == "has no wheel for armv7l"
    assert missing_wheel_reason("ai-edge-litert", platform("aarch64", 14)) == ""


def test_the_wheels_are_those_of_the_runtimes() -> None:
    assert list(WHEELS) == list(RUNTIMES)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "armv7l", "armv6l", "riscv64"])
@pytest.mark.parametrize("minor", [11, 12, 13])
def test_the_dependency_markers_match_the_wheels(machine: str, minor: int) -> None:
    here = platform(machine, minor)
    environment = {"python_version": f"3.{minor}", "platform_machine": machine}
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    asked = [
        requirement.name
        for requirement in map(Requirement, lines)
        if requirement.name in WHEELS
        and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]
    assert asked == [name for name in DEVICE_RUNTIMES if not missing_wheel_reason(name, here)][:1]


def test_a_32_bit_python_on_a_64_bit_kernel_is_32_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    assert this_platform().machine == "armv7l"


def test_musl_is_detected_by_the_missing_glibc_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("os.confstr", unknown)
    assert this_platform().libc == "musl"


# What is taken.


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, RUNTIMES[name].partition(".")[0], None)


def test_the_first_installed_runtime_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in available_runtimes():
        if name in DEVICE_RUNTIMES:
            assert find_runtime(None)[1].startswith(f"{name} ")
            hide(monkeypatch, name)


def test_a_runtime_that_does_not_load_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    if not set(DEVICE_RUNTIMES) <= set(available_runtimes()):
        pytest.skip("only one runtime is installed")
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", None)
    assert find_runtime(None)[1].startswith("ai-edge-litert ")
    with pytest.raises(ModelError, match="tflite-runtime is installed and does not load: "):
        find_runtime("tflite-runtime")


def test_without_a_runtime_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, *RUNTIMES)
    assert available_runtimes() == []
    here = this_platform()
    with pytest.raises(ModelError) as caught:
        find_runtime(None)
    assert str(caught.value).endswith(f"installed here ({here}): {install_advice(here)}")


def test_a_missing_runtime_without_wheel_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tflite-runtime", "ai-edge-litert")
    monkeypatch.setattr(interpreters, "this_platform", lambda: platform("aarch64", 13))
    with pytest.raises(ModelError, match=r"3\.11, this is 3\.13: pip install ai-edge-litert"):
        find_runtime("tflite-runtime")
    with pytest.raises(ModelError, match=r"not installed here \(aarch64.*: pip install ai-edge-l"):
        find_runtime("ai-edge-litert")


def test_numpy_2_is_rejected_before_tflite_runtime_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "tflite-runtime" not in available_runtimes():
        pytest.skip("tflite-runtime is not installed")
    monkeypatch.setattr(np, "__version__", "2.4.6")
    with pytest.raises(ModelError, match=r"needs NumPy 1, this is 2\.4\.6: pip install 'numpy<2'"):
        find_runtime("tflite-runtime")


def test_the_environment_names_the_default_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, last = [name for name in available_runtimes() if name in DEVICE_RUNTIMES]
    monkeypatch.setenv(ENVIRONMENT, last)
    assert find_runtime(None)[1].startswith(f"{last} ")
    monkeypatch.setenv(ENVIRONMENT, "onnx")
    with pytest.raises(ModelError, match=r"^FEDGE_RUNTIME: runtime 'onnx' is unknown"):
        find_runtime(None)
    assert find_runtime(last)[1].startswith(f"{last} ")


def test_a_runtimes_version_is_that_of_its_distribution() -> None:
    for name in (name for name in available_runtimes() if name in DEVICE_RUNTIMES):
        assert interpreters.runtime_version(name) == metadata.version(name)


def test_a_runtime_from_another_distribution_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The runtime is built locally, or from a vendor's wheel."""

    monkeypatch.setattr(interpreters, "_installed_version", lambda _: "")
    interpreters.runtime_version.cache_clear()
    try:
        for name in (name for name in available_runtimes() if name in DEVICE_RUNTIMES):
            assert find_runtime(name)[1] == f"{name} of an unknown version"
        assert run("model", "runtimes").exit_code == 0
    finally:
        interpreters.runtime_version.cache_clear()


# The commands.


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_runtimes_shows_the_installed_and_the_taken_runtime() -> None:
    result = run("model", "runtimes")
    assert result.exit_code == 0, result.output
    taken = find_runtime(None)[1].partition(" ")[0]
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert list(lines) == ["here", *WHEELS]
    assert str(this_platform()) in lines["here"]
    assert [name for name, line in lines.items() if line.endswith(", taken")] == [taken]
    report = json.loads(run("model", "runtimes", "--json").stdout)
    assert report["taken"] == taken
    assert list(report["installed"]) == available_runtimes()


def test_runtimes_without_a_runtime_exits_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, *RUNTIMES)
    monkeypatch.setattr(interpreters, "this_platform", lambda: platform("armv7l", 12))
    result = run("model", "runtimes")
    assert result.exit_code == 2
    assert "ai-edge-litert  not installed; has no wheel for armv7l" in result.stdout
    assert result.stderr.startswith("error: no TFLite interpreter is installed here (armv7l")
    assert "use Python 3.11, as in Debian 12, or a 64-bit system" in result.stderr


def test_check_and_inspect_use_the_named_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, last = [name for name in available_runtimes() if name in DEVICE_RUNTIMES]
    shown = run("model", "inspect", "house_price", "--json", "--runtime", last)
    assert list(json.loads(shown.stdout)["runtimes"]) == [last]
    config = tmp_path / "agent.yaml"
    config.write_text(
        "federation: houses\nagent_id: site-1\nruntime: tflite-runtime\n"
        f"data: {{path: {ROOT}/examples/data/housing_california.npz, "
        "inputs: {features: {array: x}}}\n"
    )
    command = ("agent", "check", "--config", str(config), "--model", "house_price", "--runtime")
    assert f"parameters, {last} " in run(*command, last).stdout
    hide(monkeypatch, last)
    for refused in (run("model", "inspect", "house_price", "--runtime", last), run(*command, last)):
        assert refused.exit_code == 2
        assert f"runtime {last} is not installed here" in refused.stderr


# What native code prints.

LOADER = """
import os, sys
import numpy as np
from models.runtime.program import Program
from models.runtime.stderr import stderr_without
from models.zoo import load_zoo
package = load_zoo("house_price")
for _ in range(2):
    program = Program(package.program, package.spec, runtime=sys.argv[1])
    rows = {t.name: np.zeros((4, *t.shape), t.dtype) for t in package.spec.columns}
    program.gradient(package.initial, rows)
os.write(2, b"after\\n")
"""


@pytest.mark.parametrize("runtime", DEVICE_RUNTIMES)
def test_the_delegate_is_not_announced_and_stderr_works_afterwards(runtime: str) -> None:
    if runtime not in available_runtimes():
        pytest.skip(f"{runtime} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, runtime], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "after\n")


FILTER = """
import os, re
from models.runtime.stderr import stderr_without
try:
    with stderr_without(re.compile(rb"INFO: known\\n")):
        os.write(2, b"ERROR: one\\nINFO: known\\nINFO: knownx\\n")
        raise OSError("two")
except OSError as error:
    os.write(2, str(error).encode())
"""


def test_only_the_unwanted_line_is_held_back_also_when_the_block_fails() -> None:
    done = subprocess.run([sys.executable, "-c", FILTER], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "ERROR: one\nINFO: knownx\ntwo"

"""What an operator copies: scripts that parse, units that systemd takes, sandboxes that hold.

That they install and run is tested in a Debian of its own: `make test-install`.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedge.errors
from coordinator.config import CoordinatorConfig
from fedge.yaml_config import load_config

DEPLOY = Path(__file__).parents[3] / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
CI = DEPLOY.parent / ".ci/run"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def need(tool: str) -> str:
    found = shutil.which(tool)
    if not found:
        pytest.skip(f"no {tool} on this machine")
    return found


# -- scripts ----------------------------------------------------------------------------------


@each_script
def test_a_script_parses_and_may_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script).stderr == ""


@pytest.mark.parametrize("script", [*SCRIPTS, CI], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    assert run(need("shellcheck"), script).stdout == ""


def test_help_shows_exactly_the_options_of_the_role() -> None:
    source = (DEPLOY / "install.sh").read_text()
    taking = source.split("take_options() {")[1].split("esac")[0]
    known = set(re.findall(r"--[a-z-]+(?= *[|)])", taking))
    shown = {}
    for role in ("agent", "coordinator"):
        done = run(DEPLOY / f"install-{role}.sh", "--help")
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 100
        shown[role] = set(re.findall(r"(?m)(--[a-z-]+)", done.stdout))
    assert shown["agent"] | shown["coordinator"] == known - {"--help"}
    assert not {"--enrol", "--data", "--target"} & shown["coordinator"]
    assert not {"--broker", "--federation"} & shown["agent"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--frobnicate"], "unknown option --frobnicate"),
        (["--wheel"], "--wheel needs a value"),
        (["--wheel", "nowhere.whl"], "no file nowhere.whl"),
        (["--wheels", "nowhere"], "no folder nowhere"),
        (["--purge"], "--purge goes with --uninstall"),
        (["--data", "x.npz"], "--data and --target go with --enrol"),
        (["--broker", "pi"], "--broker is no option of install-agent.sh"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(words: list[str], says: str) -> None:
    done = run(DEPLOY / "install-agent.sh", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {says}")
    assert done.stderr.count("\n") == 1


def test_the_pages_name_scripts_and_options_that_there_are() -> None:
    pages = [DEPLOY.parent / "README.md", *(DEPLOY.parent / "docs").glob("*.md")]
    found = set()
    for line in "\n".join(page.read_text() for page in pages).splitlines():
        if match := re.match(r" {4}(?:sudo )?deploy/(\S+\.sh)([^#]*)", line):
            options = set(re.findall(r"(--[a-z-]+)", match[2]))
            shown = run(DEPLOY / match[1], "--help").stdout
            assert options <= set(re.findall(r"(--[a-z-]+)", shown)), line
            found.add(match[1])
    assert found == {path.name for path in SCRIPTS} - {"install.sh"}


def with_fleet(folder: Path, federation: str, host: str, example: Path) -> str:
    """What the installer makes of a coordinator.yaml."""
    source = (DEPLOY / "install.sh").read_text()
    script = source.partition(' <<\'END\'\n"""The example')[2].partition("\nEND\n")[0]
    register = folder / "fleet.json"
    register.write_text(json.dumps({"hosts": [host], "port": 8883, "federation": federation}))
    done = run(sys.executable, "-c", f'"""The example{script}', register, example)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", ["deploy/coordinator.yaml", "deploy/docker/coordinator.yaml"])
@pytest.mark.parametrize("host", ["broker.example.org", "10.1.2.3", "::1"])
@pytest.mark.parametrize("federation", ["houses", "2024", "1e3", "yes", "_", "-"])
def test_the_coordinator_s_configuration_loads_for_every_name(
    tmp_path: Path, example: str, host: str, federation: str
) -> None:
    text = with_fleet(tmp_path, federation, host, DEPLOY.parent / example)
    (tmp_path / "coordinator.yaml").write_text(text)
    config = load_config(tmp_path / "coordinator.yaml", CoordinatorConfig)
    assert (config.federation, config.broker.host) == (federation, host)
    assert config.signing_key is not None


@pytest.mark.parametrize(
    "broker",
    [
        "broker: {host: x}",
        "broker:\n  host: x\n\n  port: 1\n# more\n  # and more\n  tls: {}\n",
        "broker: {host: x,\n  tls: {}\n}\n",
        "",
    ],
)
def test_a_configuration_of_one_s_own_gets_this_broker_however_it_is_written(
    tmp_path: Path, broker: str
) -> None:
    own = f"# ours\nrounds: 3\nmodel: house_price\n{broker}"
    for number, text in enumerate((own, f"model: house_price\n{broker}\n# ours\nrounds: 3")):
        (tmp_path / f"{number}.yaml").write_text(text)
        done = with_fleet(tmp_path, "houses", "b.example.org", tmp_path / f"{number}.yaml")
        assert "# ours\nrounds: 3\n" in done
        (tmp_path / "coordinator.yaml").write_text(done)
        config = load_config(tmp_path / "coordinator.yaml", CoordinatorConfig)
        assert (config.federation, config.broker.host, config.rounds) == (
            "houses",
            "b.example.org",
            3,
        )
        assert config.broker.port == 8883


# -- units ------------------------------------------------------------------------------------


def as_installed(unit: Path, folder: Path) -> Path:
    """The unit as the installer puts it together, with a program that this machine has."""
    text = (DEPLOY / "systemd/sandbox.conf").read_text() + unit.read_text()
    path = folder / unit.name
    path.write_text(re.sub(r"(?m)^(Exec\w+)=\S+", r"\1=/bin/true", text))
    return path


@each_unit
def test_systemd_takes_the_unit_without_a_warning(unit: Path, tmp_path: Path) -> None:
    done = run(need("systemd-analyze"), "verify", "--man=no", as_installed(unit, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@each_unit
def test_the_sandbox_is_called_ok_by_systemd(unit: Path, tmp_path: Path) -> None:
    path = as_installed(unit, tmp_path)
    analyze = need("systemd-analyze")
    # The threshold is ten times the exposure that is shown.
    done = run(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"exposure level for \S+: [01]\.\d OK", done.stdout), done.stdout


def settings(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return parser["Service"]


def test_a_wrong_configuration_is_not_tried_again_and_everything_else_is() -> None:
    for name, restart in (("fedge-agent", "always"), ("fedge-coordinator", "on-failure")):
        service = settings(DEPLOY / f"systemd/{name}.service")
        assert service["Restart"] == restart
        assert service["RestartPreventExitStatus"] == str(fedge.errors.ConfigError.exit_code)
        assert service["Type"] == "notify"
        assert int(service["WatchdogSec"]) >= 30
    assert settings(DEPLOY / "systemd/fedge-broker.service")["Restart"] == "always"


def test_pauses_that_never_shrink_are_not_for_the_broker() -> None:
    """All agents and the coordinator wait for it."""
    source = (DEPLOY / "install.sh").read_text()
    condition = source.partition("RestartMaxDelaySec")[0].rpartition("if ")[2]
    assert condition.startswith('[ "$1" != fedge-broker ] && ')


def test_the_broker_may_open_low_ports_and_nothing_else_may(tmp_path: Path) -> None:
    for unit in UNITS:
        service = settings(as_installed(unit, tmp_path))
        allowed = "CAP_NET_BIND_SERVICE" if unit.stem == "fedge-broker" else ""
        assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == allowed


def test_the_broker_may_open_as_many_files_as_it_takes_connections() -> None:
    access = (DEPLOY.parent / "broker/security/mosquitto/config.py").read_text()
    connections = re.search(r"(?m)^max_connections (\d+)$", access)
    assert connections
    files = int(settings(DEPLOY / "systemd/fedge-broker.service")["LimitNOFILE"])
    assert files > int(connections[1])

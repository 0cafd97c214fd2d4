"""The container files name only what exists: sources, users, commands, volumes, ports.

No engine builds them here; `make test-install` runs their steps in a Debian of its own.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.config import CoordinatorConfig
from fedge.yaml_config import load_config
from tests.unit.project.test_docs import resolved

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy/docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

each_service = pytest.mark.parametrize("name", SERVICES)


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: name and arguments, on one line each."""
    text = re.sub(r"(?m)^#.*\n", "", (DOCKER / "Dockerfile").read_text())
    joined = re.sub(r"\\\n\s*", "", text)
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.split("\n") if line]


def commands(script: str) -> list[list[str]]:
    """The words of every command in a script that joins them with &&."""
    return [shlex.split(part) for part in script.split("&&")]


def check_command(words: list[str]) -> None:
    """One of ours must parse."""
    assert words[0] == "fedge"
    command, rest = resolved(words[1:])
    command.make_context("fedge", rest)


# -- Dockerfile -------------------------------------------------------------------------------


def test_the_image_begins_with_the_debian_that_the_tests_install_on() -> None:
    assert steps()[0] == ("FROM", "debian:12-slim")
    assert {name for name, _ in steps()} == {"FROM", "RUN", "COPY", "VOLUME", "USER", "CMD"}


def test_what_is_copied_is_what_make_wheel_builds() -> None:
    copied = [arguments.split() for name, arguments in steps() if name == "COPY"]
    assert copied == [["dist/fedge-*.whl", "/tmp/"]]
    assert "--wheel-dir dist" in (ROOT / "Makefile").read_text()


def test_the_image_installs_the_extra_that_the_broker_s_commands_need() -> None:
    (install,) = [step for _, step in steps() if "pip install" in step]
    extras = re.search(r"\[(\w+)\]", install)
    assert extras
    assert f"\n{extras[1]} = [" in (ROOT / "pyproject.toml").read_text()


# -- compose ----------------------------------------------------------------------------------


def users() -> set[str]:
    """Those that the image has: made by it, or by Debian's package of the same name."""
    script = " && ".join(step for name, step in steps() if name == "RUN")
    made = {words[-1] for words in commands(script) if words[0] == "useradd"}
    return made | {"root"} | ({"mosquitto"} if "mosquitto" in script.split() else set())


@each_service
def test_a_service_is_built_here_and_confined(name: str) -> None:
    service = SERVICES[name]
    build = service["build"]
    context = (DOCKER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    assert service["user"] in users()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] != "root" or service.get("restart") is None  # it ends at once


@each_service
def test_what_a_service_needs_is_there(name: str) -> None:
    service = SERVICES[name]
    needed = service.get("depends_on", {})
    assert set(needed) <= set(SERVICES)
    image = " ".join(step for kind, step in steps() if kind in ("VOLUME", "RUN"))
    for volume in service["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith("."):
            assert (DOCKER / source).is_file()
        else:
            assert source in COMPOSE["volumes"]
            assert target in image.split()  # so that its owner is the image's


@each_service
def test_a_service_s_command_is_one_of_ours(name: str) -> None:
    words = list(SERVICES[name]["command"])
    if name == "broker":
        assert words == ["mosquitto", "-c", "/srv/fleet/broker/mosquitto.conf"]
        return
    if words[:2] == ["sh", "-c"]:
        values = {"$$FEDGE_HOST": "example.org", "$$FEDGE_FEDERATION": "wearables"}
        script = words[2]
        for variable, value in values.items():
            assert variable.removeprefix("$$") in SERVICES[name]["environment"]
            script = script.replace(variable, value)
        assert "$" not in script
        first, second = commands(script)
        check_command(first)
        assert second[:2] == ["chown", "-R"]
        return
    check_command(words)


def test_what_every_command_of_compose_needs_is_written_down_once() -> None:
    """Compose reads .env beside its file for all of them, not only for `up`."""
    page = (ROOT / "docs/deploy.md").read_text().partition("## Containers")[2].partition("\n## ")[0]
    lines = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    needed = set(re.findall(r"\$\{(\w+):\?", (DOCKER / "compose.yaml").read_text()))
    written = re.fullmatch(r"echo (\w+)=\S+ > \.env +#.*", lines[0])
    assert written
    assert needed == {written[1]}
    assert all(line.startswith("docker compose ") for line in lines[1:])
    assert "deploy/docker/.env" in (ROOT / ".gitignore").read_text().split()


def test_the_coordinator_s_configuration_fits_to_the_services() -> None:
    config = load_config(DOCKER / "coordinator.yaml", CoordinatorConfig)
    assert config.broker.host in SERVICES
    published = [port.split(":")[1] for port in SERVICES["broker"]["ports"]]
    assert published == [str(config.broker.port)]
    assert f',{config.broker.host}"' in SERVICES["init"]["command"][2]  # in the certificate
    targets = {volume.split(":")[1]: volume for volume in SERVICES["coordinator"]["volumes"]}
    assert str(config.state_dir) in targets
    read_only = SERVICES["coordinator"]["volumes"][-1]
    mounted = SERVICES["coordinator"]["command"][-1]
    assert read_only == f"./coordinator.yaml:{mounted}:ro"
    default = re.search(r":-(\w+)\}", SERVICES["init"]["environment"]["FEDGE_FEDERATION"])
    assert default
    assert default[1] == config.federation

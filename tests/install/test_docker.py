"""The steps of the container image and the commands of compose.yaml, without a container engine.

The image's RUN steps run as they are in a Debian of their own, but for apt's, whose packages are
there already; then each service's command runs as that service's user.
"""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from tests.install.machine import KIT, Machine
from tests.unit.project.test_deploy_docker import DOCKER, SERVICES, steps

SETTINGS = {"FEDGE_HOST": "localhost", "FEDGE_FEDERATION": "wearables"}


@pytest.fixture(scope="module")
def image(booted: Machine) -> Machine:
    """What the Dockerfile makes of a Debian."""
    for role in ("agent", "coordinator"):
        booted.run(f"sh deploy/install-{role}.sh --uninstall --purge")
    booted.run("echo '127.0.0.1 broker' >> /etc/hosts")  # as in compose's network
    for name, arguments in steps():
        if name == "COPY":
            booted.run(f"cp wheels/fedge-*.whl {arguments.split()[-1]}")
        elif name == "RUN" and arguments.startswith("apt-get"):
            packages = re.search(r"--no-install-recommends ([\w -]+)", arguments)
            assert packages
            booted.run(f"dpkg -s {packages[1]}")
        elif name == "RUN":
            # The index is a folder here: nothing in this machine reaches a network.
            booted.run(f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={KIT}/wheels; cd /; {arguments}")
    return booted


def command(name: str) -> str:
    """A service's command as its user runs it; $$ is compose's way to write $."""
    service = SERVICES[name]
    words = [word.replace("$$", "$") for word in service["command"]]
    settings = " ".join(f"{key}={value}" for key, value in SETTINGS.items())
    return f"runuser -u {service['user']} -- env {settings} {shlex.join(words)}"


def test_the_image_s_user_can_run_fedge_and_change_nothing_of_it(image: Machine) -> None:
    (user,) = [arguments for name, arguments in steps() if name == "USER"]
    assert image.says(f"runuser -u {user} -- fedge --version").startswith("fedge, version")
    assert image.says(f"find /opt/fedge /srv -user {user}") == ""
    assert image.says("stat -c %U /var/lib/fedge") == user


def test_the_services_commands_make_a_fleet_and_connect(image: Machine) -> None:
    said = image.says(command("init"))
    assert "fleet 'wearables' made in /srv/fleet" in said
    assert "nothing was changed" in image.says(command("init"))  # `up` once more
    folder = image.root / "etc/fedge"
    folder.mkdir()
    shutil.copy(DOCKER / "coordinator.yaml", folder)
    image.run("chmod 755 /etc/fedge && chmod 644 /etc/fedge/*")
    for name in ("broker", "coordinator"):
        image.run(f"systemd-run --unit={name} {command(name)}")
    image.wait("journalctl -u coordinator | grep -q 'connected'", "the coordinator's connection")
    image.wait("journalctl -u coordinator | grep -q 'waiting for agents'", "its first line")


def test_a_device_s_bundle_comes_out_of_the_volume(image: Machine) -> None:
    page = (DOCKER.parents[1] / "docs/deploy.md").read_text()
    line = re.search(r"docker compose run --rm init (sh -c '.*') > pi-1.bundle", page)
    assert line
    image.run(f"{line[1]} > pi-1.bundle")
    assert "pi-1 of federation wearables" in image.says("fedge agent enrol pi-1.bundle --dir pi-1")

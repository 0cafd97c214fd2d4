"""Installing, upgrading and removing where systemd does not run: an image being built, a chroot."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedge
from tests.install.machine import KIT, Machine
from tests.install.releases import release

NEWER = "99.1"
UPGRADE = f"sh deploy/install-agent.sh --upgrade --wheels wheels --wheel fedge-{NEWER}-*.whl"
HOME = {"agent": "fedge", "coordinator": "fedge-coordinator"}
#: Of useradd, userdel and the like.
BACKUPS = {f"/etc/{file}-" for file in ("passwd", "shadow", "group", "gshadow")}

each_role = pytest.mark.parametrize("role", ["agent", "coordinator"])


@pytest.fixture
def with_newer(installed: Machine, wheels: Path) -> Machine:
    """Installed, and another version lies ready."""
    release(next(wheels.glob("fedge-*.whl")), installed.kit, NEWER)
    return installed


@each_role
def test_it_installs_and_the_service_s_user_can_run_it(chroot: Machine, role: str) -> None:
    name = HOME[role]
    said = chroot.says(f"sh deploy/install-{role}.sh --wheels wheels")
    assert f"fedge {fedge.__version__} is installed in /opt/{name}" in said
    assert "starts with the next boot" in said
    version = f"fedge, version {fedge.__version__}"
    assert chroot.says(f"runuser -u {name} -- /opt/{name}/bin/fedge --version") == version
    assert chroot.says(f"runuser -u {name} -- fedge {role} run --help").startswith("Usage")
    python = f"runuser -u {name} -- /opt/{name}/current/bin/python"
    chroot.run(f"{python} -c 'import tflite_runtime.interpreter'")
    assert chroot.run(f"{python} -c 'import pip'", check=False).returncode == 1


def test_it_installs_from_an_index_as_well(chroot: Machine) -> None:
    # The index is a folder here; pip reads it from its settings, as it reads piwheels'.
    chroot.run("mkdir dist && cp wheels/fedge-*.whl dist/")  # where `make wheel` puts it
    pip = f"PIP_NO_INDEX=1 PIP_FIND_LINKS={KIT}/wheels"
    assert "is installed" in chroot.says(f"{pip} sh deploy/install-agent.sh")


@each_role
def test_files_belong_to_whom_they_should(installed: Machine, role: str) -> None:
    name = HOME[role]
    etc, state, home = f"/etc/{name}", f"/var/lib/{name}", f"/opt/{name}"
    unit = f"/etc/systemd/system/fedge-{role}.service"
    example, command = f"{etc}/{role}.yaml.example", f"{home}/current/bin/fedge"
    assert installed.modes([etc, example, state, unit, home, command]) == {
        etc: f"root:{name} 750",
        example: f"root:{name} 640",
        state: f"{name}:{name} 750",
        unit: "root:root 644",
        home: "root:root 755",
        command: "root:root 755",
    }
    assert installed.says(f"readlink -f {etc}/state") == state
    assert installed.says(f"getent passwd {name}").endswith(f":{state}:/usr/sbin/nologin")
    # The service's user owns nothing but its state, and nothing is writable for everybody.
    assert installed.says(f"find /opt /etc {state} -xdev -user {name}") == state
    assert installed.says(f"find {home} {etc} {state} -xdev -perm -o+w ! -type l") == ""


@each_role
def test_the_unit_is_enabled_correct_and_confined(installed: Machine, role: str) -> None:
    unit = f"fedge-{role}.service"
    assert installed.says(f"systemctl is-enabled {unit}") == "enabled"
    assert installed.run(f"systemd-analyze verify --man=no {unit}").stderr == ""
    analyze = f"systemd-analyze security --offline=true --threshold=20 --no-pager {unit}"
    assert "OK" in installed.says(analyze).splitlines()[-1]


def test_an_upgrade_keeps_configuration_and_state(with_newer: Machine) -> None:
    machine = with_newer
    machine.run("cp deploy/agent.yaml /etc/fedge/agent.yaml && echo kept > /var/lib/fedge/spool")
    assert machine.says("readlink /opt/fedge/current") == "a"
    machine.run(UPGRADE)
    assert machine.says("/opt/fedge/bin/fedge --version") == f"fedge, version {NEWER}"
    machine.run("cmp deploy/agent.yaml /etc/fedge/agent.yaml")
    assert machine.says("cat /var/lib/fedge/spool") == "kept"
    # One slot is left, and it is the other one.
    assert machine.says("ls /opt/fedge").split() == ["b", "bin", "current"]


def test_installing_again_leaves_the_software_and_puts_rights_right(installed: Machine) -> None:
    key = "/etc/fedge/agent.pem"
    installed.run(f"echo key > {key} && chmod 666 {key}")
    assert "is installed already" in installed.says("sh deploy/install-agent.sh")
    assert installed.modes([key]) == {key: "root:fedge 640"}


def test_a_token_that_does_not_help_leaves_the_agent_its_rights(installed: Machine) -> None:
    installed.run("rm -f /usr/bin/openssl")
    token = f"fedge://localhost:8884/houses/pi-1/{'s' * 22}.{'a' * 43}"
    done = installed.run(f"sh deploy/install-agent.sh --enrol {token}", check=False)
    assert done.returncode == 2
    assert "apt install openssl" in done.stderr
    assert installed.modes(["/etc/fedge"]) == {"/etc/fedge": "root:fedge 750"}


def test_a_command_of_somebody_else_is_left_alone(chroot: Machine) -> None:
    chroot.run("mkdir -p /usr/local/bin && echo mine > /usr/local/bin/fedge")
    for role in HOME:
        said = chroot.says(f"sh deploy/install-{role}.sh --wheels wheels")
        assert "note: /usr/local/bin/fedge is not ours and stays as it is" in said
        chroot.run(f"sh deploy/install-{role}.sh --uninstall --purge")
        assert chroot.says("cat /usr/local/bin/fedge") == "mine"


def test_a_unit_that_cannot_be_enabled_is_told(chroot: Machine) -> None:
    refuses = "#!/bin/sh\ncase $* in *enable*) echo it is masked >&2; exit 1; esac\n"
    chroot.run("mv /usr/bin/systemctl /usr/bin/systemctl.real")
    (chroot.root / "usr/bin/systemctl").write_text(f'{refuses}exec systemctl.real "$@"\n')
    chroot.run("chmod 755 /usr/bin/systemctl")
    said = chroot.says("sh deploy/install-agent.sh --wheels wheels")
    assert "warning: fedge-agent will not start at boot: it is masked" in said
    assert "is installed in /opt/fedge" in said


def test_an_upgrade_that_fails_changes_nothing(with_newer: Machine) -> None:
    machine = with_newer
    machine.run("rm wheels/numpy-*.whl")
    before = machine.files()
    done = machine.run(UPGRADE, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: installation failed; nothing was changed"
    assert machine.files() == before
    version = f"fedge, version {fedge.__version__}"
    assert machine.says("/opt/fedge/bin/fedge --version") == version


def test_an_installation_that_was_cut_short_is_done_anew(chroot: Machine) -> None:
    # As a power cut leaves it: half a slot, and nothing that points to it.
    chroot.run("mkdir -p /opt/fedge/a/bin && echo rubbish > /opt/fedge/a/bin/python")
    chroot.run("sh deploy/install-agent.sh --wheels wheels")
    assert chroot.says("fedge --version") == f"fedge, version {fedge.__version__}"


def test_uninstalling_keeps_configuration_and_state_and_purging_nothing(
    chroot: Machine, installed: Machine
) -> None:
    before = chroot.files() | BACKUPS
    kept = set()
    for role, name in HOME.items():
        config, state = f"/etc/{name}/{role}.yaml", f"/var/lib/{name}/spool"
        drop_in = f"/etc/systemd/system/fedge-{role}.service.d"  # of `systemctl edit`
        installed.run(f"echo x > {config}; echo x > {state}; mkdir {drop_in}")
        kept |= {f"/etc/{name}", f"/etc/{name}/state", config, f"/var/lib/{name}", state, drop_in}
        assert "are kept" in installed.says(f"sh deploy/install-{role}.sh --uninstall")
    assert installed.files() | BACKUPS == before | kept
    for _ in range(2):  # once more does no harm
        for role, name in HOME.items():
            installed.run(f"sh deploy/install-{role}.sh --uninstall --purge")
            assert installed.run(f"getent passwd {name}", check=False).returncode == 2
    assert installed.files() | BACKUPS == before


def test_both_roles_live_on_one_machine_and_leave_one_by_one(installed: Machine) -> None:
    command = "readlink /usr/local/bin/fedge"
    assert installed.says(command) == "/opt/fedge-coordinator/bin/fedge"
    installed.run("sh deploy/install-coordinator.sh --uninstall --purge")
    assert installed.says(command) == "/opt/fedge/bin/fedge"
    assert installed.says("runuser -u fedge -- fedge --version").startswith("fedge")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("cp -r deploy /srv; cd /srv; runuser -u nobody sh deploy/install-agent.sh", "needs root"),
        ("sh deploy/install-agent.sh --upgrade", "nothing is installed in /opt/fedge"),
        (
            "sh deploy/install-agent.sh --wheels wheels --python /usr/bin/perl",
            "/usr/bin/perl is no Python 3.11 to 3.13",
        ),
        ("rm wheels/fedge-*; sh deploy/install-agent.sh --wheels wheels", "no fedge-*.whl"),
        (
            "python3 -m venv --without-pip /opt/fedge; sh deploy/install-agent.sh --wheels wheels",
            "/opt/fedge is an environment made by hand",
        ),
        (
            "rm -r /usr/lib/python3.11/ensurepip; sh deploy/install-agent.sh --wheels wheels",
            "python3-venv is missing: apt-get install python3-venv",
        ),
    ],
)
def test_what_cannot_work_is_one_line(chroot: Machine, command: str, says: str) -> None:
    done = chroot.run(command, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {says}")
    assert done.stderr.count("\n") == 1

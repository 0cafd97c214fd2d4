"""What installing costs on a fresh Debian: time, room on disk, and memory of the running service.

    python benchmarks/install.py [--repeats 3] [--json] [--save]

Needs root and what `make test-install` needs, and a wheel in dist/ (`make wheel`). Everything is
installed without a network, from a folder of wheels, in a chroot; then systemd boots in a container
and runs the services. Beside it: the same wheel installed with pip into a virtual environment, by
hand, which is what the installer is compared to.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Report, Spread, budget, finish, option_parser, shown, spread

from tests.install.machine import ROOT, Machine, fetch_wheels, make_base, missing

BY_HAND = """python3 -m venv /opt/by-hand && /opt/by-hand/bin/pip install --quiet --no-index \
  --no-cache-dir --find-links wheels "$(ls wheels/fedge-*.whl)" """
PURGE = "sh deploy/install-agent.sh --uninstall --purge"


def seconds(action: Callable[[], Any]) -> float:
    """How long it took."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def megabytes(machine: Machine, path: str) -> float:
    """Room that is taken on disk, in units of 10^6 bytes."""
    return int(machine.says(f"du -s --block-size=1 {path}/ | cut -f1")) / 1e6


def measure_install(machine: Machine) -> dict[str, float]:
    """One turn: by hand, then the installer: install, install again, upgrade, remove."""
    machine.mount_proc()
    found = {"by_hand_s": seconds(lambda: machine.run(BY_HAND))}
    found["by_hand_mb"] = megabytes(machine, "/opt/by-hand")
    before_mb = used_mb(machine)
    install = "sh deploy/install-agent.sh --wheels wheels"
    found["agent_s"] = seconds(lambda: machine.run(install))
    found["agent_all_mb"] = used_mb(machine) - before_mb
    found["agent_mb"] = megabytes(machine, "/opt/fedge")
    found["again_s"] = seconds(lambda: machine.run("sh deploy/install-agent.sh"))
    found["upgrade_s"] = seconds(lambda: machine.run(f"{install} --upgrade"))
    found["remove_s"] = seconds(lambda: machine.run(PURGE))
    coordinator = "sh deploy/install-coordinator.sh --wheels wheels --broker localhost"
    found["coordinator_s"] = seconds(lambda: machine.run(coordinator))
    found["coordinator_mb"] = megabytes(machine, "/opt/fedge-coordinator")
    return found


def used_mb(machine: Machine) -> float:
    """All that was written to this machine so far."""
    upper = machine.root.parent / "upper"
    blocks = (path.lstat().st_blocks for path in upper.rglob("*"))
    return sum(blocks) * 512 / 1e6


def measure_services(machine: Machine) -> dict[str, float]:
    """An idle agent that waits for rounds, as systemd sees it."""
    machine.boot()
    coordinator = "sh deploy/install-coordinator.sh --wheels wheels --broker localhost"
    machine.run(coordinator)
    machine.run("fedge broker enrol /var/lib/fedge-fleet pi-1 --out pi-1.bundle")
    machine.run("sh deploy/install-agent.sh --wheels wheels --enrol pi-1.bundle")
    ready = [
        seconds(lambda: machine.run("systemctl restart fedge-agent")) for _ in range(5)
    ]  # returns when the service has said that it is ready
    time.sleep(5)
    pid = machine.show("fedge-agent", "MainPID")["MainPID"]
    rss = machine.says(f"sed -n 's/VmRSS:\\s*\\([0-9]*\\) kB/\\1/p' /proc/{pid}/status")
    return {"ready_s": statistics.median(ready), "idle_rss_mb": int(rss) * 1024 / 1e6}


def measure(repeats: int) -> Report:
    """Fresh machines, one after the other."""
    wheel = next((ROOT / "dist").glob("fedge-*.whl"), None)
    if wheel is None:
        sys.exit("error: no wheel in dist/: make wheel")
    turns = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = os.environ.get("FEDGE_DEBIAN_ROOT")
        base = make_base(Path(kept) if kept else folder / "base")
        wheels = fetch_wheels(wheel, folder / "wheels")
        for number in range(repeats):
            with Machine(base, folder=folder / f"machine-{number}") as machine:
                machine.copy_kit(wheels)
                turns.append(measure_install(machine))
        with Machine(base, folder=folder / "booted") as machine:
            machine.copy_kit(wheels)
            services = measure_services(machine)
        wheels_mb = sum(path.stat().st_size for path in wheels.iterdir()) / 1e6
    figures: dict[str, Spread] = {key: spread(turn[key] for turn in turns) for key in turns[0]}
    figures |= {key: spread([value]) for key, value in services.items()}
    installed = figures["agent_mb"]["median"]
    return {
        "repeats": repeats,
        "wheels_mb": wheels_mb,
        "figures": figures,
        "budgets": [budget(installed, 150, "agent installed, MB")],
    }


ROWS = (
    ("agent, by hand with pip", "by_hand"),
    ("agent, installer", "agent"),
    ("coordinator with broker and fleet", "coordinator"),
)


def show(report: Report) -> None:
    """The table."""
    figures = report["figures"]
    for text, key in ROWS:
        size = shown(figures[f"{key}_mb"], digits=0)
        print(f"{text:36}{shown(figures[f'{key}_s']):>22} s   {size:>16} MB")
    for text, key in (("again", "again_s"), ("upgrade", "upgrade_s"), ("removal", "remove_s")):
        print(f"{text:36}{shown(figures[key]):>22} s")
    print(f"{'all that installing writes':36}{shown(figures['agent_all_mb'], digits=0):>22} MB")
    print(f"{'idle service, RSS':36}{shown(figures['idle_rss_mb']):>22} MB")
    print(f"{'restart until ready':36}{shown(figures['ready_s'], digits=2):>22} s")
    print(f"{'wheels carried for it':36}{report['wheels_mb']:>22.0f} MB")


def main() -> None:
    """Measure, show, keep."""
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="fresh machines (default: 3)")
    options = parser.parse_args()
    if lack := missing():  # `make bench` goes on with the others
        print(f"install: not measured, {lack}")
        return
    finish("install", measure(options.repeats), options, show)


if __name__ == "__main__":
    main()

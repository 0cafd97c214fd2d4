"""The same federated work with fedge and with what a user would take instead, in one run.

    python benchmarks/peers/run.py [--only NAME ...] [--clients 200] [--rounds 12] [--repeats 3]
                                   [--scratch FOLDER] [--keep] [--json] [--save]

Every peer is installed into an environment of its own below a scratch folder (a network or a mirror
that pip knows; gigabytes with PyTorch) and does the work of `work.py`: all must end with the same
θ. Peers take turns, so that a busy machine is busy for all. One that does not install or fails is
listed with the reason; the run ends with 1 where θ differs, or fedge did not run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
# First: puts `tasks/` and the checkout on the path.
import work
from deployments import DEPLOYMENTS, deploy
from environments import Environments
from measure import Report, finish, option_parser, shown
from simulations import PEERS, simulate

#: What the ratios are of, those of them that ran.
_OURS = ("fedge-arrays", "fedge-bytes", "fedge-exact")


def show_simulations(rows: Report) -> None:
    """The table of simulations."""
    ran = [name for name in _OURS if "cpu_ms" in rows.get(name, {})]
    ours = [rows[name]["cpu_ms"]["median"] for name in ran]
    print("simulation; processor ms per client and round, then wall")
    print(f"x fedge: processor time beside {' / '.join(ran) or 'nothing'}\n")
    print(
        f"{'':42}{'processor ms':>22}{'wall':>8}{'x fedge':>22}{'first round':>13}"
        f"{'import':>10}{'RSS':>9}{'installed':>11}{'θ off by':>11}"
    )
    for row in rows.values():
        if "not_run" in row:
            print(f"{row['title']:42}  not run: {row['not_run']}")
            continue
        cpu = row["cpu_ms"]
        ratios = " / ".join(f"{cpu['median'] / base:.2g}" for base in ours)
        print(
            f"{row['title']:42}{shown(cpu, digits=3):>22}{row['wall_ms']['median']:>8.3f}"
            f"{ratios:>22}{row['first_round_s']['median']:>11.1f} s"
            f"{row['import_cpu_s']['median']:>8.2f} s{row['rss_peak_mb']['median']:>6.0f} MB"
            f"{row['installed_mb']:>8.0f} MB{row['distance']:>11.1e}"
            + (f"  ({row['differs']})" if row["differs"] else "")
            + ("  NOT THE SAME WORK" if row["same"] is False else "")
        )


def show_deployments(rows: Report) -> None:
    """The table of deployments."""
    print("\ntwo clients as processes of their own, P = 2,410, loopback, no TLS\n")
    lines = (
        ("start to the end of the first round, s", "first_round_s", 2),
        ("a round after it, s", "round_s", 3),
        ("bytes up, client and round", "bytes_up", 0),
        ("bytes down, client and round", "bytes_down", 0),
        ("processor s, client and round", "client_cpu_s", 3),
        ("processor s of a client until it connects", "connect_cpu_s", 2),
        ("RSS of a client at its peak, MB", "client_rss_mb", 0),
        ("RSS of server (and broker) at its peak, MB", "server_rss_mb", 0),
    )
    ran = [row for row in rows.values() if "not_run" not in row]
    for row in rows.values():
        if "not_run" in row:
            print(f"{row['title']}: not run: {row['not_run']}")
    print(f"{'':46}" + "".join(f"{row['title']:>42}" for row in ran))
    for text, key, digits in lines:
        print(f"{text:46}" + "".join(f"{shown(row[key], digits=digits):>42}" for row in ran))
    print(f"{'installed on a client, MB':46}" + "".join(f"{r['installed_mb']:>42.0f}" for r in ran))
    print(f"{'θ off by':46}" + "".join(f"{r['distance']:>42.1e}" for r in ran))
    for row in ran:
        parts = ", ".join(f"{name} {mb:.0f}" for name, mb in sorted(row["rss_mb"].items()))
        print(f"\n{row['title']}, MB of RSS of each process at its peak: {parts}")
        if "own_count" in row:
            up, down = row["own_count"]["up"], row["own_count"]["down"]
            print(f"by fedge's own count of PUBLISH packets: {up:,.0f} bytes up, {down:,.0f} down")


def show(report: Report) -> None:
    """Both tables."""
    if report["simulations"]:
        show_simulations(report["simulations"])
    if report["deployments"]:
        show_deployments(report["deployments"])


def measure(options: argparse.Namespace, scratch: Path) -> Report:
    """Everything that was asked for."""
    chosen = options.only or [*PEERS, *DEPLOYMENTS]
    environments = Environments(scratch / "environments")
    environments.folder.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="work-", dir=scratch))
    try:
        own = work.write_work(folder / "work.npz", options.clients, options.rounds)
        peers = [name for name in PEERS if name in chosen]
        others = [name for name in DEPLOYMENTS if name in chosen]
        return {
            "clients": options.clients,
            "rounds": options.rounds,
            "rows": work.ROWS,
            "load_before": os.getloadavg()[0],
            "simulations": simulate(peers, own, folder, environments, options.repeats),
            "deployments": deploy(others, folder, environments, options.repeats),
            "environments": environments.installed,
            "budgets": [],
        }
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure, show, keep."""
    parser = option_parser(__doc__)
    names = [*PEERS, *DEPLOYMENTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=12, help="of the simulations")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="reuse the environments in this folder")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folder")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: at least 2; the first has the start in it")
    # A runner that is ended ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="peers-"))
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        report = measure(options, scratch.resolve())
    finally:
        if not options.keep and not options.scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    finish("peers", report, options, show)
    rows = {**report["simulations"], **report["deployments"]}
    if wrong := [name for name, row in rows.items() if row.get("same") is False]:
        sys.exit(f"error: not the same θ: {', '.join(wrong)}")
    if lost := [name for name, row in rows.items() if "not_run" in row and "fedge" in name]:
        sys.exit(f"error: not run: {', '.join(lost)}")


if __name__ == "__main__":
    main()

"""What the experiments share: their data, runs of `fedge fleet simulate`, verdicts, pictures."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedge.errors import ConfigError
from fleet.experiments.estimates import estimate
from fleet.experiments.results import Report, load_report

HERE = Path(__file__).parent
RESULTS = HERE / "results"
#: Data, packages and runs; `runs/` is not committed.
SCRATCH = HERE.parents[1] / "runs" / "papers"
#: Rounds beyond those of a paper that still count as the same: an independent replication of
#: McMahan et al. found up to this factor.
TOLERANCE = 1.3
SHA256 = {
    "mnist_writers.npz": "2c076a62c921265f476fda743901e3b1eebcb563bea7f24d8930ea0aaaa3f459",
    "text_shakespeare.npz": "bd4a30dc72896b7c37dc2a7b2f6ca719fca9ad20f5fc77f1cf0701502b7a72ea",
}
Document = dict[str, Any]


def option_parser(text: str | None, data: str) -> argparse.ArgumentParser:
    """Returns a parser with the options that every experiment takes."""
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"{data}, see README.md")
    parser.add_argument("--seeds", type=int, default=None, help="number of seeds of every row")
    return parser


def open_data(path: Path, name: str) -> dict[str, Any]:
    """Returns the arrays of a data file after a look at its SHA-256.

    Raises:
        SystemExit: it is another file than the one that the committed results were made with.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256[name]:
        raise SystemExit(f"{path}: SHA-256 {found}, expected {SHA256[name]} ({name})")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def mnist(path: Path, folder: Path) -> dict[str, str]:
    """Writes the 60,000 training rows and, for the coordinator, the 10,000 test rows.

    Returns the changes to a scenario that name the two files.
    """
    data = open_data(path, "mnist_writers.npz")
    if not (folder / "central.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train, test = data["split"] == 0, data["split"] == 1
        np.savez(folder / "train.npz", **{key: data[key][train] for key in ("x", "y", "client")})
        np.savez(folder / "central.npz", image=data["x"][test], target=data["y"][test])
    return {
        "data.path": str(folder / "train.npz"),
        "evaluation.data": str(folder / "central.npz"),
    }


def simulate(scenario: str, changes: Mapping[str, Any], out: Path) -> Report:
    """Runs `fedge fleet simulate`, or reads the report of the same run made before."""
    settings = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    command = ["fleet", "simulate", str(HERE / scenario), "--no-check", "--no-trace"]
    command += [part for setting in settings for part in ("--set", setting)]
    note = out / "command.json"
    if note.exists() and json.loads(note.read_text()) == command:
        return load_report(out)
    began = time.time()
    subprocess.run(
        [sys.executable, "-P", "-m", "fedge", *command, "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={"FEDGE_RUNTIME": "ai-edge-litert", "OPENBLAS_NUM_THREADS": "1", **os.environ},
    )
    note.write_text(json.dumps(command))
    report = load_report(out)
    print(f"{out.name}: {len(report.rounds)} rounds, {time.time() - began:.0f} s", flush=True)
    return report


def values(report: Report, metric: str) -> list[float]:
    """Returns a metric of every round, rounded for a committed file."""
    return [round(float(value), 4) for value in report.curve(metric).values]


def rounds_row(
    label: str, reports: Mapping[int, Report], target: float, paper: float | None
) -> Document:
    """Returns rounds to a central accuracy by seed beside the paper's, and the verdict."""
    crossings = {seed: r.rounds_to("central_accuracy", target) for seed, r in reports.items()}
    reached = [rounds for rounds in crossings.values() if rounds is not None]
    row: Document = {
        "label": label,
        "target": target,
        "rounds": {str(s): None if r is None else round(r, 1) for s, r in crossings.items()},
        "run": {str(s): len(r.rounds) for s, r in reports.items()},
        "megabytes_up": {
            str(s): round(crossing.bytes_up / 1e6, 1)
            for s, r in reports.items()
            if (crossing := r.crossing("central_accuracy", target))
        },
        "curves": {str(s): values(r, "central_accuracy") for s, r in reports.items()},
        "paper": paper,
    }
    if len(reached) < len(crossings):
        return row | {"verdict": "not reached by every seed in the rounds that were run"}
    found = estimate(reached)
    row |= {"mean": round(found.mean, 1), "sd": found.sd and round(found.sd, 1)}
    if paper is None:
        return row
    ratio = found.mean / paper
    verdict = "within" if ratio <= TOLERANCE else "beyond"
    return row | {"ratio": round(ratio, 2), "verdict": f"{verdict} {TOLERANCE} x the paper's"}


def save(name: str, document: Document, example: Report, began: float) -> None:
    """Writes a result with what it was made with.

    Args:
        name: of the files in `results/`.
        document: of the experiment; `data` is the name of its file.
        example: one of the runs, whose settings and versions are written too.
        began: time at which this call began.
    """
    document = document | {
        "sha256": SHA256[str(document["data"])],
        "command": f"python benchmarks/papers/{Path(sys.argv[0]).name} --data FILE",
        "settings_of_one_run": _settings(example),
        "run": {key: example.document["run"].get(key) for key in ("kind", "versions", "commit")},
        "interpreter": example.document["runtime"],
        "seconds_of_this_call": round(time.time() - began),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{RESULTS / name}.json")


def _settings(report: Report) -> Document:
    """Returns the resolved settings of a run, with names of files and folders for their paths."""
    config = {key: report.config[key] for key in ("partition", "federation", "seeds")}
    federation = dict(config["federation"])
    federation["model"] = Path(federation["model"]).name
    evaluation = dict(federation["evaluation"])
    federation["evaluation"] = evaluation | {"data": Path(evaluation["data"]).name}
    return config | {"federation": federation}


def picture(name: str, panels: Sequence[Mapping[str, Any]]) -> None:
    """Draws panels of curves: lines by label, a target, the paper's figure as a vertical line.

    Args:
        name: of the .png beside the result.
        panels: `title`, `lines` (label -> curves, one for each seed, values by round), and if there
            are any `target`, `papers` (label -> rounds), `low` (least value shown), `x` (label).
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ConfigError("matplotlib is missing: pip install 'fedge[plot]'") from error
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6 * columns, 4 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for number, (label, curves) in enumerate(panel["lines"].items()):
            for seed, curve in enumerate(curves):
                rounds = np.arange(1, len(curve) + 1)
                shown = {"label": label if not seed else None, "color": f"C{number}"}
                axis.plot(rounds, np.maximum.accumulate(curve), linewidth=1, alpha=0.7, **shown)
        if target := panel.get("target"):
            axis.axhline(target, color="grey", linewidth=0.8)
        for label, rounds in panel.get("papers", {}).items():
            axis.axvline(rounds, color="black", linestyle="--", linewidth=1, label=label)
        axis.set_title(panel["title"])
        axis.set_xlabel(panel.get("x", "round"))
        axis.set_ylabel("best test accuracy so far")
        axis.set_ylim(bottom=panel.get("low"))
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=90)
    plt.close(figure)

"""Small reports with round numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet.experiments.execution.run import write_index
from fleet.experiments.experiment import Case, Experiment, Index, Run, Target, load_experiment


def round_document(number: int, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    """A round that sends 100 bytes up and 1,000 down in 2 s."""
    known = accuracy is not None
    return {
        "round_id": number,
        "status": "committed",
        "version": number,
        "asked": 2,
        "reported": 2,
        "refused": 0,
        "stale": 0,
        "evaluated": known,
        "loss": 1 - accuracy if accuracy is not None else 0.9,
        "metrics": {"accuracy": accuracy} if known else {},
        "train_loss": 0.9,
        "train_metrics": {"accuracy": 0.1},
        "bytes_up": 100,
        "bytes_down": 1000,
        "seconds": 2.0,
        "agents": {
            name: {"task": "train", "loss": loss, "metrics": {"accuracy": 1 - loss}}
            for name, loss in (("pi-1", 0.25), ("pi-2", 0.5))
        },
        "matrices": {},
    } | changes


def report_document(
    values: Sequence[float | None], rounds: Sequence[dict[str, Any]] = (), **changes: Any
) -> dict[str, Any]:
    """A report whose rounds have these accuracies; None: not evaluated."""
    made = list(rounds) or [round_document(n, value) for n, value in enumerate(values, 1)]
    last = made[-1]
    final = {
        "loss": last["loss"],
        "metrics": last["metrics"],
        "matrices": {"confusion": [[3, 1], [0, 4]]},
        "version": last["version"],
        **{key: sum(r[key] for r in made) for key in ("bytes_up", "bytes_down", "seconds")},
    }
    report = {
        "scenario": "tiny",
        "description": "a scenario for tests",
        "classes": ["cat", "dog"],
        "rounds": made,
        "final": final,
        "seed": 0,
    }
    return report | changes


def write_report(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps(document))
    return path


def experiment(
    folder: Path,
    values: dict[str, dict[int, Sequence[float | None]]],
    *,
    failed: Sequence[tuple[str, int]] = (),
    target: Target | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
) -> Experiment:
    """An experiment whose runs have these accuracies: by case, by seed, by round."""
    runs = []
    for case, seeds in values.items():
        for seed, accuracies in seeds.items():
            place = f"runs/{case}/{seed}"
            runs.append(Run(case=case, seed=seed, folder=place, status="done", seconds=1.0))
            write_report(folder / place, report_document(accuracies, seed=seed))
    runs += [
        Run(case=case, seed=seed, folder=f"runs/{case}/{seed}", status="failed", error="no luck")
        for case, seed in failed
    ]
    of_case = settings or {}
    varied = dict.fromkeys(key for one in of_case.values() for key in one)
    cases = [Case(name=name, scenario="tiny", settings=of_case.get(name, {})) for name in values]
    index = Index(
        experiment="exp", target=target, varied=tuple(varied), cases=tuple(cases), runs=tuple(runs)
    )
    write_index(index, folder)
    return load_experiment(folder)

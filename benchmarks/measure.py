"""What the benchmarks share: spreads, the machine's name, how a report is shown and kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
Spread = dict[str, float]
Report = dict[str, Any]


def spread(values: Iterable[float]) -> Spread:
    """Median, smallest, largest and number of the values."""
    numbers = list(values)
    return {
        "median": statistics.median(numbers),
        "min": min(numbers),
        "max": max(numbers),
        "n": len(numbers),
    }


def shown(values: Spread, scale: float = 1.0, digits: int = 1) -> str:
    """`median (min-max)`."""
    median, least, most = (values[key] * scale for key in ("median", "min", "max"))
    return f"{median:,.{digits}f} ({least:,.{digits}f}-{most:,.{digits}f})"


def budget(value: float, limit: float, what: str, *, at_least: bool = False) -> Report:
    """A figure beside its budget."""
    met = value >= limit if at_least else value <= limit
    return {"what": what, "value": value, "limit": limit, "at_least": at_least, "met": bool(met)}


def machine() -> str:
    """Where this runs, for the report."""
    return (
        f"{os.cpu_count()}-core {platform.machine().replace('_', '-')}, shared; "
        f"Python {platform.python_version()}, numpy {np.__version__}"
    )


def option_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--save", action="store_true", help="keep it in benchmarks/results/")
    return parser


def finish(
    name: str, report: Report, options: argparse.Namespace, show: Callable[[Report], None]
) -> None:
    """Print the report, and keep it when asked to."""
    report = {"benchmark": name, "machine": machine(), **report}
    text = json.dumps(_rounded(report), indent=1)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n")
    if options.json:
        print(text)
        return
    print(f"{name} ({report['machine']})\n")
    show(report)
    print()
    for row in report["budgets"]:
        sign = ">=" if row["at_least"] else "<="
        verdict = "met" if row["met"] else "MISSED"
        print(f"{verdict:<7}{row['what']}: {row['value']:.4g} (budget {sign} {row['limit']:g})")


def run_worker(script: str, arguments: Sequence[str], timeout_s: float) -> Any:
    """What `script --worker ARGUMENTS` prints as JSON on its last line, in a process of its own."""
    command = [sys.executable, script, "--worker", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _rounded(value: Any) -> Any:
    """Five significant digits: more would say nothing."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value

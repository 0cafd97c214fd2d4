"""Runs an experiment: plans it, skips what is done already, runs the rest, keeps the index."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fedge.errors import ConfigError
from fedge.files import write_whole
from fleet.experiments.execution.job import Job, is_configured
from fleet.experiments.execution.plan import Plan, PlannedCase
from fleet.experiments.execution.workers import Ended, Event, run_jobs
from fleet.experiments.experiment import INDEX_FILE, Index, Run, read_index
from fleet.experiments.results import load_report

RUNS = "runs"


@dataclass(frozen=True)
class Prepared:
    """An experiment that is ready to run.

    Attributes:
        folder: of the experiment.
        index: with the status of every run.
        jobs: that are left, seed by seed, so that all cases have results early.
    """

    folder: Path
    index: Index
    jobs: tuple[Job, ...]


def prepare(plan: Plan, folder: Path, *, fresh: bool = False) -> Prepared:
    """Makes the experiment's folder and finds the runs that are done already.

    Args:
        plan: to run.
        folder: of the experiment.
        fresh: repeat what is done, too.

    Raises:
        ConfigError: the folder cannot be written, or holds another experiment.
    """
    folder = folder.resolve()
    _check_folder(plan, folder)
    if fresh:
        shutil.rmtree(folder / RUNS, ignore_errors=True)
    jobs = [_job(plan, case, seed, folder) for seed in plan.seeds for case in plan.cases]
    done = {job.key for job in jobs if _is_done(job)}
    before = _seconds_before(folder)
    runs = {
        job.key: Run(
            case=job.case,
            seed=job.seed,
            folder=job.folder.relative_to(folder).as_posix(),
            status="done" if job.key in done else "waiting",
            seconds=before.get(job.key, 0.0) if job.key in done else 0.0,
        )
        for job in jobs
    }
    index = Index(
        experiment=plan.name,
        engine=plan.grid.engine,
        target=plan.grid.target,
        varied=plan.varied,
        cases=tuple(planned.case for planned in plan.cases),
        runs=tuple(runs[planned.case.name, s] for planned in plan.cases for s in plan.seeds),
    )
    write_index(index, folder)
    return Prepared(folder, index, tuple(job for job in jobs if job.key not in done))


def run_prepared(prepared: Prepared, processes: int, show: Callable[[Event], None]) -> Index:
    """Runs what is left, and keeps the index on disk; returns it.

    Args:
        prepared: the experiment.
        processes: at the same time.
        show: called with every event, once the index on disk has it.
    """
    index = prepared.index
    with contextlib.closing(run_jobs(prepared.jobs, processes)) as events:
        for event in events:
            if isinstance(event, Ended):
                index = with_ended(index, event)
                write_index(index, prepared.folder)
            show(event)
    return index


def with_ended(index: Index, ended: Ended) -> Index:
    """Returns the index with a run that has ended."""
    runs = tuple(
        msgspec.structs.replace(
            run,
            status="failed" if ended.error else "done",
            error=ended.error,
            seconds=round(ended.seconds, 3),
        )
        if (run.case, run.seed) == ended.key
        else run
        for run in index.runs
    )
    return msgspec.structs.replace(index, runs=runs)


def write_index(index: Index, folder: Path) -> None:
    """Writes experiment.json whole or not at all."""
    text = msgspec.json.format(msgspec.json.encode(index), indent=1)
    write_whole(folder / INDEX_FILE, text + b"\n", 0o644)


def _check_folder(plan: Plan, folder: Path) -> None:
    try:
        (folder / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be made: {error.strerror}; name another folder with --out"
        ) from error
    file = folder / INDEX_FILE
    if not file.exists():
        if any((folder / RUNS).iterdir()):
            raise ConfigError(
                f"{folder / RUNS} holds files of no experiment: name another folder with --out"
            )
        return
    other = read_index(file).experiment
    if other != plan.name:
        raise ConfigError(
            f"{folder} holds the experiment {other!r}: name another folder with --out"
        )


def _job(plan: Plan, planned: PlannedCase, seed: int, folder: Path) -> Job:
    case = planned.case
    return Job(
        case=case.name,
        seed=seed,
        group=plan.name,
        base=folder,
        folder=folder / RUNS / case.name / str(seed),
        path=planned.path.resolve(),
        engine=plan.grid.engine,
        changes=planned.changes,
        options=plan.options,
        varied=case.settings,
        hooks=plan.grid.hooks,
        document=planned.resolved.document(seed),
        rounds=planned.resolved.rounds,
    )


def _is_done(job: Job) -> bool:
    """Returns whether the run's folder holds a report made with the same configuration."""
    if not is_configured(job):
        return False
    try:
        return load_report(job.folder).is_complete
    except ConfigError:
        return False


def _seconds_before(folder: Path) -> dict[tuple[str, int], float]:
    """Returns how long runs took that are done, as the index knows them."""
    with contextlib.suppress(ConfigError):
        return {(run.case, run.seed): run.seconds for run in read_index(folder / INDEX_FILE).runs}
    return {}

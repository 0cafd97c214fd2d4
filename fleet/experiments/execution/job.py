"""One run of an experiment, in a process of its own: log, resolved configuration, report."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from coordinator.config import CoordinatorConfig
from coordinator.records.records import RoundRecord
from fedge.console import LineFormatter
from fedge.errors import FederationError, one_line
from fedge.files import write_whole
from fleet.experiments.hooks.follow import CONFIGURATION_FILE, Followed
from fleet.experiments.results import REPORT_FILE
from fleet.participants import Participants
from fleet.runs.resume import RUN_FILE
from learning.registry import Choice

LOG_FILE = "log.txt"
_MADE_HERE = (
    *("pictures", "processes", "model", "state"),
    *(LOG_FILE, REPORT_FILE, CONFIGURATION_FILE, RUN_FILE),
)
#: libyaml's, where there is one: a thousand configurations are read in seconds.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
#: A terminal is told of rounds at most this often.
_TELL_S = 0.2
_COLUMNS = 140


@dataclass(frozen=True)
class Job:
    """What a process needs to know of one run; it is pickled.

    Attributes:
        case: name of the case.
        seed: of the run.
        group: name of the experiment.
        base: folder of the experiment.
        folder: of the run.
        path: of the scenario.
        engine: simulate or run.
        changes: to the scenario, by dotted key.
        options: that are no changes of the scenario.
        varied: settings that set the case apart.
        hooks: that follow the run.
        document: resolved configuration, for the run's folder.
        rounds: at most.
    """

    case: str
    seed: int
    group: str
    base: Path
    folder: Path
    path: Path
    engine: str
    changes: Mapping[str, Any]
    options: Mapping[str, Any]
    varied: Mapping[str, Any]
    hooks: tuple[Choice, ...]
    document: Mapping[str, Any]
    rounds: int

    @property
    def key(self) -> tuple[str, int]:
        """Case and seed."""
        return self.case, self.seed


def execute(job: Job, tell: Callable[[int], None]) -> str:
    """Runs a job; returns why it failed in one line, empty when it is done.

    Args:
        job: to run.
        tell: called with the number of rounds that have ended, now and then.

    Raises:
        KeyboardInterrupt: the run was interrupted; its folder holds no report then.
    """
    goes_on = _can_go_on(job)
    if not goes_on:
        _clear(job)
    with (job.folder / LOG_FILE).open("a", encoding="utf-8", buffering=1) as log, _logged(log):
        try:
            _run(job, log, tell, goes_on)
        except KeyboardInterrupt:
            (job.folder / REPORT_FILE).unlink(missing_ok=True)  # of the rounds so far
            raise
        except FederationError as error:
            log.write(f"error: {error}\n")
            return one_line(error)
        except Exception as error:  # noqa: BLE001  one run must not end the others
            traceback.print_exc(file=log)
            return f"{type(error).__name__}: {one_line(error)} ({job.folder / LOG_FILE})"
    return ""


def is_configured(job: Job) -> bool:
    """Returns whether the run's folder was made with the job's configuration."""
    try:
        text = (job.folder / CONFIGURATION_FILE).read_bytes()
        return bool(yaml.load(text, Loader=_Loader) == job.document)  # noqa: S506  a safe loader
    except (OSError, ValueError, yaml.YAMLError):
        return False


def _can_go_on(job: Job) -> bool:
    """Returns whether the job was interrupted; a hook must see every round, so it begins anew."""
    return not job.hooks and (job.folder / RUN_FILE).is_file() and is_configured(job)


def _clear(job: Job) -> None:
    """Makes the run's folder, without the results of an earlier run."""
    for name in _MADE_HERE:
        path = job.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.dump(dict(job.document), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_whole(job.folder / CONFIGURATION_FILE, text.encode(), 0o644)


def _run(job: Job, log: TextIO, tell: Callable[[int], None], goes_on: bool) -> None:
    from rich.console import Console

    from fleet.live import LiveWatcher, print_result
    from fleet.scenario import load_scenario

    console = Console(file=log, width=_COLUMNS, force_terminal=False)
    with LiveWatcher(console, "rounds") as shown:
        watcher = Followed(
            _Told(shown, tell),
            job.hooks,
            job.folder,
            group=job.group,
            name=f"{job.case}/{job.seed}",
            base=job.base,
            varied={**job.varied, "seed": job.seed},
        )
        is_done = False
        try:
            report = _engine(job, watcher, goes_on)
            is_done = True
        finally:
            watcher.end(is_done=is_done)
    print_result(console, load_scenario(job.path, job.changes), report, judge=False)


def _engine(job: Job, watcher: Followed, goes_on: bool) -> dict[str, Any]:
    changes = {**job.changes, "seed": job.seed}
    if job.engine == "run":
        from fleet.runs.run import RunOptions, run_scenario

        hosts = job.options.get("hosts")
        of_run = RunOptions(job.folder, changes, hosts=hosts, resume=goes_on)
        return run_scenario(job.path, of_run, watcher)
    from fleet.simulate import SimulateOptions, simulate
    from fleet.virtual.shells import silence_logs

    options = SimulateOptions(
        job.folder,
        changes,
        mode=job.options.get("mode", "auto"),
        kernel=job.options.get("kernel", "auto"),
        processes=1,  # the runs themselves are many
        faults=_path(job.options.get("faults")),
        profiles=_path(job.options.get("profiles")),
        trace=False,
        check=False,
        signed=job.options.get("signed", False),
        resume=goes_on,
    )
    with ExitStack() as stack:
        stack.callback(silence_logs())
        return simulate(job.path, options, watcher)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


class _Told:
    """Watcher that tells how many rounds have ended, beside showing them."""

    def __init__(self, watcher: Any, tell: Callable[[int], None]) -> None:
        self._watcher = watcher
        self._tell = tell
        self._next_s = 0.0

    def begin(self, participants: Participants, config: CoordinatorConfig, broker: str) -> None:
        self._watcher.begin(participants, config, broker)

    def round(self, record: RoundRecord) -> None:
        self._watcher.round(record)
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _TELL_S
            self._tell(record.round_id)

    def waiting(self, eligible: int, wanted: int) -> None:
        self._watcher.waiting(eligible, wanted)

    def note(self, text: str) -> None:
        self._watcher.note(text)

    def working(self, what: str, done: int, of: int) -> None:
        self._watcher.working(what, done, of)


@contextmanager
def _logged(log: TextIO) -> Iterator[None]:
    """Sends log lines, and what a library prints, to the run's log meanwhile."""
    handler = logging.StreamHandler(log)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    root = logging.getLogger()
    before, out, err = root.handlers[:], sys.stdout, sys.stderr
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    sys.stdout = sys.stderr = log
    try:
        yield
    finally:
        root.handlers[:] = before
        sys.stdout, sys.stderr = out, err

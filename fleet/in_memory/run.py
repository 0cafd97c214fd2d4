"""Runs a prepared federation from Python: mode, processes, hooks, progress, interruptions."""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from coordinator.config import CoordinatorConfig
from fedge.errors import ConfigError
from fleet.batched.mode import Choice, choose_mode
from fleet.experiments.hooks.follow import Followed
from fleet.in_memory.progress import OnRound, Progress
from fleet.in_memory.result import Interrupted, Result
from fleet.in_memory.values import whole
from fleet.runs.folders import make_folder
from fleet.runs.prepared import Prepared
from fleet.runs.resume import RunInterrupted
from fleet.runs.run import RunOptions, run_scenario
from fleet.scenario import load_scenario, scenario_package
from fleet.simulate import SimulateOptions, simulate_prepared
from fleet.virtual.shells import silence_logs
from models.package.package import ModelPackage, load_package

#: Agents up to which real messages take little beside the training.
_SOME = 10_000
_GUARD = 'if __name__ == "__main__":'


@dataclass(frozen=True)
class How:
    """How a federation is simulated; see `fleet.api.simulate`."""

    mode: str = "auto"
    processes: int | None = None
    out: Path | None = None
    progress: bool = True
    hooks: Sequence[Any] = ()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Makes an interruption that leaves nothing an `Interrupted`, like one that leaves a result."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(None) from None


@_interruptible()
def run(prepare: Callable[[Path], tuple[Prepared, dict[str, Any] | None]], how: How) -> Result:
    """Simulates a federation.

    Args:
        prepare: returns it, and the keys of its report that say what it is (None: those of its
            scenario), given the folder of the run.
        how: to simulate it.

    Raises:
        ConfigError: a setting is wrong.
        Interrupted: it was interrupted; has the result, once a round was committed.
    """
    processes = 1 if how.processes is None else whole(how.processes, "processes", 1)
    _check_processes(processes)
    with _folder(how.out) as folder:
        prepared, record = prepare(folder)
        choice = choose(how.mode, prepared.config, len(prepared.participants.rows))
        options = SimulateOptions(
            folder,
            mode=choice.mode,
            mode_reason=choice.why,
            processes=processes,
            trace=False,
            check=False,
            keep=how.out is not None,
        )
        if record is not None:
            kind = "event_exact" if choice.mode == "exact" else "batched"
            given = {"mode": choice.mode, "mode_reason": choice.why}
            facts = {"kind": kind, "options": {**record["run"]["options"], **given}}
            record = record | {"run": record["run"] | facts}
        with _watched(how, folder) as watcher:
            report = simulate_prepared(prepared, options, watcher, record)
        return _result(report, folder, how.out, prepared.package)


@_interruptible()
def run_processes(path: Path, options: Callable[[Path], RunOptions], how: How) -> Result:
    """Runs a scenario with real processes.

    Args:
        path: of the scenario.
        options: returns those of the run, given its folder.
        how: out, progress and hooks.

    Raises:
        ConfigError, LinkError, FleetError: see `fleet.runs.run.run_scenario`.
        Interrupted: it was interrupted; has the result, once a round was committed.
    """
    with _folder(how.out) as folder:
        wanted = options(folder)
        with _watched(how, folder) as watcher:
            report = run_scenario(path, wanted, watcher)
        package = scenario_package(load_scenario(path, wanted.changes), path)
        return _result(report, folder, how.out, package)


@contextlib.contextmanager
def _watched(how: How, folder: Path) -> Iterator[Followed]:
    """Yields what shows and follows a run; an interrupted one has its result."""
    callables, choices = _hooks(how.hooks)
    progress = Progress(is_shown=how.progress, on_round=callables)
    followed = Followed(progress, choices, folder, **_place(how.out))
    is_done, unsilence = False, silence_logs()
    try:
        yield followed
        is_done = True
    except RunInterrupted as stopped:
        raise Interrupted(_result(stopped.report, folder, how.out, None)) from None
    finally:
        progress.end()
        unsilence()
        followed.end(is_done=is_done)


def _place(out: Path | None) -> dict[str, Any]:
    """Returns where hooks write: into the folder of the run, else beside the notebook."""
    if out is not None:
        return {}
    now = datetime.now().strftime("%Y-%m-%d_%H%M%S.%f")  # of its own, or it replaced another
    return {"base": Path.cwd(), "name": now[:-3]}


def _result(
    report: Mapping[str, Any], folder: Path, out: Path | None, package: ModelPackage | None
) -> Result:
    """Returns the result in a folder; `package` is taken where nothing was trained."""
    if (folder / "model").is_dir() or package is None:
        package = load_package(folder / "model")
    return Result(package, report, out)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Yields the folder of the run; without `out` one that is gone afterwards."""
    if out is not None:
        try:
            make_folder(out)
        except ConfigError as error:
            raise ConfigError(str(error).replace("--out", "out=")) from error
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="fedge-") as folder:
        yield Path(folder)


def _hooks(hooks: Sequence[Any]) -> tuple[list[OnRound], list[Any]]:
    """Returns hooks that are functions, and those that are named."""
    if isinstance(hooks, str | Mapping) or callable(hooks):
        hooks = [hooks]
    for hook in hooks:
        if not callable(hook) and not isinstance(hook, str | Mapping):
            raise ConfigError(
                f"hooks: {hook!r}: give a function of a round's figures, or the name of a hook"
            )
    return [hook for hook in hooks if callable(hook)], [h for h in hooks if not callable(h)]


def choose(wanted: str, config: CoordinatorConfig, agents: int) -> Choice:
    """Returns how to simulate a federation: with cohorts, where it has them.

    From Python nobody looks at single messages, so few agents are no reason for events.

    Raises:
        ConfigError: the mode is unknown, or cannot do what is asked.
    """
    known = ("auto", "exact", "bytes", "arrays")
    if wanted not in known:
        raise ConfigError(f"mode {wanted!r} is unknown; modes: {', '.join(known)}")
    first = wanted
    if wanted == "auto":
        first = "bytes" if agents <= _SOME else "arrays"
    try:
        return choose_mode(first, config, agents, [])
    except ConfigError as error:
        if wanted == "auto":
            return choose_mode("exact", config, agents, [])
        raise ConfigError(str(error).replace("--mode ", "mode ")) from error


def _check_processes(processes: int) -> None:
    """Checks that other processes can begin.

    A new process imports the script that is running. Without a guard it would begin the simulation
    again, and end.

    Raises:
        ConfigError: the script has no guard.
    """
    if processes == 1:
        return
    how = f"put the call below `{_GUARD}`, or leave processes at 1"
    if multiprocessing.parent_process() is not None:
        raise ConfigError(f"processes={processes} in a process of multiprocessing: {how}")
    found = _call_in_script()
    if found is not None and not _is_guarded(*found):
        path, line = found
        raise ConfigError(
            f"processes={processes}: {path}, line {line}: each process imports this script and "
            f"would begin again: {how}"
        )


def _call_in_script() -> tuple[Path, int] | None:
    """Returns file and line at which the running script is; None: in a notebook or console."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    frame: FrameType | None = sys._getframe()
    found = None
    while frame is not None:
        if frame.f_globals is vars(main) and frame.f_code.co_name == "<module>":
            found = frame
        frame = frame.f_back
    if found is None or file is None or found.f_code.co_filename != file:
        return None
    return Path(file), found.f_lineno


def _is_guarded(path: Path, line: int) -> bool:
    """Whether a line stands below a test of `__name__`."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True  # not to be judged
    return any(
        isinstance(node, ast.If)
        and node.lineno <= line <= (node.end_lineno or node.lineno)
        and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))
        for node in ast.walk(tree)
    )

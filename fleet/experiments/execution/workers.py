"""Processes that run jobs next to each other; one that dies costs its job only."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from fedge.system import one_thread_each
from fleet.experiments.execution.job import Job, execute

#: A run in real processes takes up to 5 s to end its own.
_STOP_S = 20.0


@dataclass(frozen=True)
class Began:
    """A job has begun."""

    key: tuple[str, int]


@dataclass(frozen=True)
class Rounds:
    """A job's rounds go on; `done` have ended."""

    key: tuple[str, int]
    done: int


@dataclass(frozen=True)
class Ended:
    """A job has ended; `error` is empty when it is done."""

    key: tuple[str, int]
    error: str
    seconds: float


Event = Began | Rounds | Ended


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    began_s: float = 0.0


def run_jobs(jobs: Sequence[Job], processes: int) -> Generator[Event, None, None]:
    """Yields what happens to jobs, in the order in which it happens.

    Args:
        jobs: begun in this order.
        processes: at the same time.

    Closing the iterator, as an exception of the caller does, ends all processes: SIGTERM, which
    interrupts their runs in order, then SIGKILL.
    """
    left = deque(jobs)
    workers: list[_Worker] = []
    try:
        while left or any(worker.job for worker in workers):
            while left and len(workers) < processes:
                workers.append(_start())
            for worker in workers:
                if worker.job is None and left:
                    yield _give(worker, left.popleft())
            for worker in _ready(workers):
                yield from _take(worker)
            workers = [worker for worker in workers if worker.process.is_alive() or worker.job]
    finally:
        _stop(workers)


def _start() -> _Worker:
    # Spawned, not forked: interpreters that are loaded already may hold locks and threads.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), name="fedge-experiment")
    with one_thread_each():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, job: Job) -> Began:
    worker.job, worker.began_s = job, time.monotonic()
    with contextlib.suppress(OSError):  # it has died, which `_take` finds
        worker.pipe.send(job)
    return Began(job.key)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Waits for a worker that has something to say, or has died."""
    pipes = {worker.pipe: worker for worker in workers if worker.job}
    return [pipes[pipe] for pipe in wait(list(pipes)) if isinstance(pipe, Connection)]


def _take(worker: _Worker) -> Iterator[Event]:
    assert worker.job is not None
    key = worker.job.key
    seconds = time.monotonic() - worker.began_s
    try:
        said = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(_STOP_S)
        worker.job = None
        worker.pipe.close()
        yield Ended(key, f"its process ended: {_why(worker.process.exitcode)}", seconds)
        return
    if isinstance(said, int):
        yield Rounds(key, said)
        return
    worker.job = None
    yield Ended(key, said, seconds)


def _why(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the system ran out of memory? use fewer --jobs" if name == "SIGKILL" else ""
        return f"{name}{hint}"
    return f"exit code {code}"


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()  # one that waits for a job ends by itself
        if worker.job and worker.process.is_alive():
            worker.process.terminate()
    deadline_s = time.monotonic() + _STOP_S
    for worker in workers:
        worker.process.join(max(0.1, deadline_s - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(pipe: Connection) -> None:
    """Runs jobs until there is none; the main function of a process."""
    # Ctrl-C reaches every process of a terminal: the parent says with SIGTERM which must end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            job: Job = pipe.recv()
            pipe.send(execute(job, pipe.send))


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt

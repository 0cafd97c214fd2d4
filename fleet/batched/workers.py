"""Workers of a simulation: this process, or several of this machine; see also `ray_workers`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Protocol, Self

from fedge.errors import FleetError
from fedge.system import one_thread_each
from fleet.batched.cohort.task import PartAnswer, PhaseTask
from fleet.batched.fleet_setup import FleetSetup

#: Times that a part is given to new processes after those before ended.
TRIES = 3

Job = tuple[int, PhaseTask]


class Workers(Protocol):
    """Does the work of a fleet's parts."""

    def run(self, jobs: Sequence[Job]) -> Iterator[PartAnswer]:
        """Yields the answers in the order of the jobs: (number of the part, its task).

        Raises:
            FleetError: processes end again and again.
        """

    def __enter__(self) -> Self:
        """Starts what it needs."""

    def __exit__(self, *error: object) -> None:
        """Ends it."""


class OwnProcess:
    """Works in this process."""

    def __init__(self, setup: FleetSetup) -> None:
        self._setup = setup

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was started."""

    def run(self, jobs: Sequence[Job]) -> Iterator[PartAnswer]:
        """See `Workers.run`."""
        return (self._setup.work(*job) for job in jobs)


class Processes:
    """Works in processes of this machine; one that ends is replaced, and its part done again.

    Args:
        setup: of the fleet.
        count: number of processes.
    """

    def __init__(self, setup: FleetSetup, count: int) -> None:
        self._setup = setup
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._setup = self._setup.for_processes()
        self._stack.enter_context(one_thread_each())  # processes start when there is work
        self._pool = self._new_pool()
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._stack.close()

    def _new_pool(self) -> ProcessPoolExecutor:
        # Not forked: this process may have threads, which a fork would leave half-way.
        return ProcessPoolExecutor(
            self._count, get_context("spawn"), initializer=_begin, initargs=(self._setup,)
        )

    def run(self, jobs: Sequence[Job]) -> Iterator[PartAnswer]:
        """See `Workers.run`."""
        futures: list[Future[PartAnswer] | None] = [None] * len(jobs)
        for number in range(len(jobs)):
            yield self._answer(number, jobs, futures)
            futures[number] = Future()  # its answer is not kept

    def _answer(
        self, number: int, jobs: Sequence[Job], futures: list[Future[PartAnswer] | None]
    ) -> PartAnswer:
        """Returns the answer to a job; those behind it are under way meanwhile."""
        for _ in range(TRIES):
            try:
                for other in range(number, len(jobs)):
                    if futures[other] is None:
                        futures[other] = self._running_pool.submit(_work, *jobs[other])
                future = futures[number]
                assert future is not None, "submitted"
                return future.result()
            except BrokenProcessPool:  # also when one ended between two phases
                self._running_pool.shutdown(wait=False, cancel_futures=True)
                self._pool = self._new_pool()
                for other in range(number, len(jobs)):
                    if not _is_done(futures[other]):
                        futures[other] = None
        raise FleetError(
            f"a process that simulates agents ended {TRIES} times at the same part: out of memory? "
            "take fewer processes (--processes)"
        )

    @property
    def _running_pool(self) -> ProcessPoolExecutor:
        assert self._pool is not None, "entered"
        return self._pool


def _is_done(future: Future[PartAnswer] | None) -> bool:
    return (
        future is not None
        and future.done()
        and not future.cancelled()
        and future.exception() is None
    )


_SETUP: list[FleetSetup] = []


def _begin(setup: FleetSetup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts ends the run, which ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    setup.prepare()
    _SETUP[:] = [setup]


def _end_with_parent() -> None:
    """Ends this process when the one that started it was killed: nobody else would."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(number: int, task: PhaseTask) -> PartAnswer:
    return _SETUP[0].work(number, task)


def default_count(parts: int) -> int:
    """Returns the processes that are worth starting for so many parts."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, parts)

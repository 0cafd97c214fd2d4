"""Workers of a simulation on Ray: on this machine, or on the machines of a cluster.

Each actor owns some parts of the fleet, whoever else is there: the states of their agents are
always read where they were written. An actor that is lost is started again by Ray, elsewhere if
need be, and what it had not answered is done again.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np

import fedge
from fedge.errors import ConfigError, FederationError, FleetError
from fleet.batched.cohort.task import PartAnswer, PhaseTask
from fleet.batched.fleet_setup import FleetSetup
from fleet.batched.workers import TRIES, Job, default_count
from learning.vector.vectors import Vectors

log = logging.getLogger(__name__)

#: A Ray of this machine that ends with the simulation; or one that runs here, if any, else that.
LOCAL, AUTO = "local", "auto"
#: Ray itself starts in 8 to 25 s on two busy cores; its workers load the model.
_START_S = 180.0
_CONNECT_S = 10.0
#: Beside the rows, which are there once: θ and answers on their way. Ray takes no less.
_STORE_BYTES = 128 << 20


class RayWorkers:
    """See `fleet.batched.workers.Workers`.

    Args:
        setup: of the fleet.
        count: number of actors; None: one for each core.
        address: "local", "auto", or host:port of a cluster's head. A Ray that this process uses
            already is taken as it is, and left.

    Raises:
        ConfigError: Ray is not installed, or the address leads nowhere.
    """

    def __init__(self, setup: FleetSetup, count: int | None, address: str) -> None:
        self._ray = _import_ray()
        self._setup = setup
        self._count = count
        self._address = address
        self._actors: list[Any] = []
        self._shared: list[Any] = []
        self._is_ours = False
        self._temporary: Path | None = None
        self._token = setup.folder / f"ray-{uuid4().hex}"

    def __enter__(self) -> Self:
        try:
            self._start()
            self._start_actors()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._shared = [], []
        if self._is_ours:
            self._ray.shutdown()
        self._token.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def run(self, jobs: Sequence[Job]) -> Iterator[PartAnswer]:
        """See `Workers.run`."""
        # All tasks of a phase have the same vectors: they go out once.
        stored = {id(task.vectors): task.vectors for _, task in jobs}
        references = {key: self._ray.put(vectors) for key, vectors in stored.items()}
        answers = deque(
            self._actors[number % len(self._actors)].work.remote(
                number,
                pickle.dumps(replace(task, vectors={}), 5),
                references[id(task.vectors)],
                self._shared,
            )
            for number, task in jobs
        )
        while answers:
            yield self._answer(answers.popleft())

    def processes(self) -> list[int]:
        """Returns the process id of each actor."""
        found: list[int] = self._ray.get([actor.process.remote() for actor in self._actors])
        return found

    def _answer(self, reference: Any) -> PartAnswer:
        """Returns an answer: a copy of its own, so that Ray's store is free again."""
        try:
            answer: PartAnswer = pickle.loads(self._ray.get(reference))  # noqa: S301  # our own
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FederationError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise FleetError(
                f"a Ray worker that simulates agents ended {TRIES} times at the same part: out of "
                f"memory? take fewer processes (--processes); Ray says: {_first_line(error)}"
            ) from error
        return answer

    # -- start ----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Starts a Ray, or connects to one."""
        if self._ray.is_initialized():
            return  # the caller's own: it stays
        self._is_ours = True
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        common = {"log_to_driver": False, "logging_level": logging.ERROR}
        with _kept_signals():
            if self._address == AUTO and self._connected(**common):
                return
            if self._address in (LOCAL, AUTO):
                self._start_local(common)
                return
            _check_address(self._address)
            try:
                self._ray.init(self._address, **common)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"--ray {self._address}: {_first_line(error)}") from error

    def _connected(self, **common: Any) -> bool:
        try:
            self._ray.init(AUTO, **common)
        except ConnectionError:
            return False
        return True

    def _start_local(self, common: dict[str, Any]) -> None:
        log.info("starting Ray on this machine; takes up to %d s", _START_S)
        # Short: the paths of sockets in it have at most 107 characters.
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-"))
        self._ray.init(
            LOCAL,
            num_cpus=self._count or default_count(len(self._setup.bounds)),
            include_dashboard=False,
            object_store_memory=_STORE_BYTES + 2 * self._rows_bytes(),
            _temp_dir=str(self._temporary),
            **common,
        )

    def _rows_bytes(self) -> int:
        data = self._setup.data
        assert data is not None, "before the rows are given away"
        arrays = (*data.arrays.values(), data.index, data.offsets, data.num_train)
        return sum(array.nbytes for array in arrays)

    def _start_actors(self) -> None:
        ray, setup = self._ray, self._setup
        cores = int(ray.cluster_resources().get("CPU", 0))
        count = min(self._count or cores, cores, len(setup.bounds))
        if not count:
            raise ConfigError(f"--ray {self._address}: the cluster has no cores")
        setup.folder.mkdir(parents=True, exist_ok=True)
        self._token.touch()
        # Not what this process has loaded; the rows go with it, once for each machine.
        # With each call, not to the constructor: what is held here an actor finds again after it
        # was started again. In a list, since an actor looks at it once only.
        self._shared = [ray.put(replace(setup, folder=setup.folder.resolve()))]
        options = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": TRIES - 1}
        actor = ray.remote(**options)(_Worker)
        token = str(self._token.resolve())
        self._actors = [actor.remote(token) for _ in range(count)]
        try:
            ready = [each.prepare.remote(self._shared) for each in self._actors]
            versions = ray.get(ready, timeout=_START_S)
        except ray.exceptions.GetTimeoutError as error:
            raise FleetError(
                f"--ray {self._address}: {count} workers have not started in {_START_S:g} s; are "
                "the cluster's cores taken? take fewer (--processes)"
            ) from error
        except ray.exceptions.RayError as error:
            raise ConfigError(
                f"--ray {self._address}: a worker cannot start: {_first_line(error)}; every "
                "machine of the cluster needs fedge, with the plugins at the same paths"
            ) from error
        if others := sorted(set(versions) - {fedge.__version__}):
            raise ConfigError(
                f"--ray {self._address}: fedge {others[0]} on the cluster, {fedge.__version__} "
                "here; install the same on every machine"
            )


class _Worker:
    """Works on parts of a fleet, in a process of Ray.

    Args:
        token: file that is there where the folder of the states is the one of the simulation.
    """

    def __init__(self, token: str) -> None:
        self._setup: FleetSetup | None = None
        self._has_folder = Path(token).is_file()

    def prepare(self, shared: Sequence[Any]) -> str:
        """Takes the fleet's setup, which `shared` refers to; returns the version of fedge."""
        self._prepared(shared)
        return fedge.__version__

    def process(self) -> int:
        return os.getpid()

    def work(self, number: int, task: bytes, vectors: Vectors, shared: Sequence[Any]) -> bytes:
        """Returns the pickled answer of a part to a pickled task: both can be written to."""
        whole: PhaseTask = replace(pickle.loads(task), vectors=vectors)  # noqa: S301  # our own
        setup = self._prepared(shared)
        answer = setup.work(number, whole)
        if not self._has_folder and np.any(answer.columns.slots):
            raise ConfigError(
                f"{socket.gethostname()} does not see {setup.folder}, and the devices of "
                "this federation remember things from round to round (its algorithm or codec has "
                "states): keep the run in a folder that all machines of the cluster share"
            )
        return pickle.dumps(answer, 5)

    def _prepared(self, shared: Sequence[Any]) -> FleetSetup:
        """Returns the setup: fetched and prepared the first time, also after a restart."""
        if self._setup is None:
            setup: FleetSetup = _import_ray().get(shared[0])
            setup.prepare()
            self._setup = setup
        return self._setup


def _import_ray() -> Any:
    try:
        import ray  # rarely used, and large
    except ImportError as error:
        raise ConfigError("ray is missing: pip install 'fedge[ray]'") from error
    return ray


def _check_address(address: str) -> None:
    """Raises ConfigError unless somebody listens: Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--ray {address}: expected {LOCAL}, {AUTO}, or HOST:PORT of a cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--ray {address}: nobody answers ({error})") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if isinstance(getattr(error, "cause", None), Exception) else 0][:300]


@contextmanager
def _kept_signals() -> Iterator[None]:
    """Keeps how this process ends: Ray puts a handler of its own in the place of SIGTERM's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(TypeError):  # None: not set from Python
            signal.signal(signal.SIGTERM, before)

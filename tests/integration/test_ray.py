"""Ray works on the parts of a fleet: same result, and a worker that is lost is replaced.

A local Ray listens on every interface, whatever it is told: the tests that start one run in a
network of their own, which has nothing but a loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError
from fleet.batched import simulate
from fleet.batched.cohort.task import PartAnswer
from fleet.batched.ray_workers import RayWorkers
from tests.unit.fleet.batched.fleets import cohorts, cohorts_in, make_fleet

ray = pytest.importorskip("ray")

#: Set in the network of its own.
_INSIDE = "FEDGE_TEST_NETWORK"
_APART = ("unshare", "--net", "--map-root-user", "--user")

starts_ray = pytest.mark.skipif(
    _INSIDE not in os.environ, reason="started by the test that makes a network for it"
)


@pytest.mark.timeout(300)
@pytest.mark.skipif(_INSIDE in os.environ, reason="this is that network")
def test_ray_does_its_work_in_a_network_of_its_own() -> None:
    if shutil.which("unshare") is None or subprocess.run([*_APART, "true"]).returncode:
        pytest.skip("no right to make a network (unshare)")
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-n", "0"]
    up = 'ip link set lo up && exec "$@"'
    done = subprocess.run(
        [*_APART, "sh", "-c", up, "sh", *pytest_here],
        env={**os.environ, _INSIDE: "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "2 passed" in done.stdout, done.stdout[-2000:]


#: Three parts on two actors, and states on disk: control variates and residuals.
CHANGES: dict[str, Any] = {
    "agents": 150,
    "federation.rounds": 2,
    "federation.algorithm": "scaffold",
    "federation.cohort": {"fraction": 0.5},
    "federation.codec": {"name": "int8", "block_size": 2},
}


class Killed(RayWorkers):
    """Ends one of its workers after the first answer of the second phase."""

    phases = 0

    def run(self, jobs: Any) -> Iterator[PartAnswer]:
        self.phases += 1
        for number, answer in enumerate(super().run(jobs)):
            if self.phases == 2 and number == 0:
                os.kill(self.processes()[1], signal.SIGKILL)
            yield answer


@starts_ray
def test_a_lost_worker_is_replaced_and_the_result_is_that_of_one_process_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fleet = make_fleet("house_price", CHANGES, "bytes", vectorized=True)
    expected = cohorts(fleet)
    made = []

    def make_workers(*arguments: Any) -> Killed:
        made.append(Killed(*arguments))
        return made[0]

    monkeypatch.setattr(simulate, "make_workers", make_workers)
    before = signal.getsignal(signal.SIGTERM)
    done = cohorts_in(tmp_path, fleet, 2, "local")
    assert made[0].phases > 2
    np.testing.assert_array_equal(done.theta, expected.theta)
    assert done.records == expected.records
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.glob("ray-*"))
    assert "core_worker" not in capfd.readouterr().err  # a warning of Ray's about lost actors


@starts_ray
def test_a_ray_that_the_caller_uses_already_works_and_stays() -> None:
    changes = {"agents": 70, "federation.rounds": 1}
    fleet = make_fleet("house_price", changes, "arrays", vectorized=True)
    folder = tempfile.mkdtemp(prefix="ray-")  # short: there are sockets in it
    try:
        ray.init(
            "local",
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 << 20,
            _temp_dir=folder,
        )
        found = cohorts(fleet, 2, "auto")
        assert ray.is_initialized()
    finally:
        ray.shutdown()
        shutil.rmtree(folder)
    np.testing.assert_array_equal(found.theta, cohorts(fleet).theta)


@pytest.mark.skipif(_INSIDE in os.environ, reason="needs no network of its own")
def test_an_address_where_nobody_answers_is_named() -> None:
    fleet = make_fleet("house_price", {"agents": 70}, "arrays", vectorized=True)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConfigError, match=f"--ray 127.0.0.1:{port}: nobody answers"):
        cohorts(fleet, 1, f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="expected local, auto, or HOST:PORT"):
        cohorts(fleet, 1, "here")

"""SCAFFOLD with real processes: control variates survive kills between update and receipt."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from broker.local.broker import LocalBroker
from coordinator.storage.store import Store
from edge_agent.machine.pending_update import AgentMemory
from edge_agent.storage.update_spool import Spool
from learning.vector.parameters import F32
from tests.acceptance.federation import Federation, eventually, running

#: Some 0.3 s of training, in which a signal has time to arrive.
TRAINING = {"epochs": 1000, "batch_size": 0, "optimizer": "sgd", "learning_rate": 0.0005}
LIMIT = 1 << 26


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with LocalBroker() as one:
        yield one


def memory(federation: Federation, name: str) -> AgentMemory:
    return Spool(federation.state(name), LIMIT).load()


def control(federation: Federation, name: str) -> F32 | None:
    """The control variate of the last update of an agent that counted."""
    settled = memory(federation, name).settled
    return None if settled is None else settled.vectors["control"]


def check_control_variates(federation: Federation) -> None:
    """c is the mean of the c_i: all agents take part in every round."""
    store = Store.open_existing(federation.state("coordinator"))
    with closing(store):
        progress = store.load(3)
        assert progress is not None
        c = progress.state.vectors["control"]
    own = [control(federation, name) for name in federation.names]
    assert all(vector is not None for vector in own)
    mean = np.mean(np.stack([vector for vector in own if vector is not None]), axis=0)
    np.testing.assert_allclose(c, mean, rtol=0, atol=1e-6)
    assert np.abs(c).max() > 0


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_an_agent_killed_before_its_receipt_keeps_the_control_variate_of_its_last_counted_update(
    tmp_path: Path, broker: LocalBroker, codec: str
) -> None:
    settings = {"algorithm": "scaffold", "codec": codec, "training": TRAINING, "rounds": 4}
    federation = Federation(tmp_path, broker.port, coordinator=settings).write()
    with running(federation):
        federation.start_all()
        eventually("round 3", lambda: "round 3: training" in federation.said("pi-1"))
        federation.signal("coordinator", signal.SIGSTOP)  # updates are sent, receipts do not come
        eventually("an update waits", lambda: memory(federation, "pi-1").pending is not None)
        before = control(federation, "pi-1")
        waiting = memory(federation, "pi-1").pending
        assert before is not None
        assert waiting is not None
        assert (waiting.state.vectors["control"] != before).any()
        federation.kill("pi-1")
        after = control(federation, "pi-1")
        assert after is not None
        np.testing.assert_array_equal(after, before)
        federation.start("pi-1")
        federation.signal("coordinator", signal.SIGCONT)
        assert federation.ended("coordinator") == 0
        eventually(
            "all receipts are there",
            lambda: all(memory(federation, n).pending is None for n in federation.names),
        )
    assert federation.versions() == list(range(5))
    check_control_variates(federation)

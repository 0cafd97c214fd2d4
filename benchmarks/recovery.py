"""What failures cost: time after a kill, bytes after a power cut, the broker's memory.

Real processes and a real Mosquitto on loopback. Budgets there are none; each figure stands beside
what it would be without what was built for it.
"""

from __future__ import annotations

import random
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from measure import Report, finish, option_parser, shown, spread

from broker.link.backoff import STABLE_S
from broker.link.link import Received
from broker.link.mqtt import MqttLink
from broker.local.broker import HOST, LocalBroker
from broker.protocol import blobs, messages
from broker.protocol.messages import BlobRef
from broker.protocol.topics import (
    ChunkTopic,
    CoordinatorStatusTopic,
    ProgramTopic,
    ReportTopic,
    RoundTopic,
    Topic,
    Topics,
)
from models.zoo import load_zoo
from tests.acceptance.federation import Federation, running
from tests.acceptance.proxy import Proxy

TOPICS = Topics("f")
MODEL_BYTES = 10_000_000
STALLED_AGENTS = 60
REPEATS = 5
LOSS = 0.2
_LONGEST_S = 90.0


# -- time after a kill --------------------------------------------------------------------------


def recoveries() -> Report:
    """Seconds from a restart to the next committed round, of each of the three."""
    settings = {
        "rounds": 1_000_000,
        "training": {"epochs": 1, "batch_size": 0, "learning_rate": 0.01},
    }
    with tempfile.TemporaryDirectory() as folder, LocalBroker("mosquitto") as broker:
        federation = Federation(Path(folder), broker.port, coordinator=settings).write()
        for name in ("coordinator", *federation.names):
            # The back-off that a device has when its configuration says nothing.
            federation.configure(name, broker={"host": HOST, "port": broker.port})
        with running(federation):
            federation.start_all()
            federation.await_version(1)
            return {
                victim: spread(_recovery(federation, broker, victim) for _ in range(REPEATS))
                for victim in ("coordinator", "agent", "broker")
            }


def _recovery(federation: Federation, broker: LocalBroker, victim: str) -> float:
    if victim == "broker":
        time.sleep(STABLE_S + 0.5)  # back-offs begin anew
    name = federation.names[0] if victim == "agent" else victim
    if victim == "broker":
        broker.kill()
    else:
        federation.kill(name)
    time.sleep(0.3)  # nothing is on its way any more
    version = federation.version()
    began_s = time.monotonic()
    if victim == "broker":
        broker.start()
    else:
        federation.start(name)
    federation.await_version(version + 1, _LONGEST_S)
    return time.monotonic() - began_s


# -- bytes after a power cut --------------------------------------------------------------------


class FakeCoordinator:
    """A coordinator that announces one round with large weights, and publishes what is missing."""

    def __init__(self, broker: LocalBroker, weights: bytes) -> None:
        package = load_zoo("house_price")
        self.ref, self.chunks = blobs.split(weights)
        self.link = MqttLink(broker.settings, client_id="coordinator", session_expiry_s=0)
        self.link.subscribe(TOPICS.name(ReportTopic("pi-0", 1)))
        self.link.open()
        package_ref, (chunk,) = blobs.split(package.wire)
        self._retain(ChunkTopic(package_ref.sha256, 0), chunk)
        for index in range(self.ref.chunks):
            self._retain(ChunkTopic(self.ref.sha256, index), self.chunks[index])
        online = messages.CoordinatorStatus(state="online", session="s", version=0)
        self._retain(CoordinatorStatusTopic(), messages.encode(online))
        spec = package.spec
        manifest = messages.ProgramManifest(
            name=spec.name, package=package_ref, fingerprint=spec.fingerprint
        )
        self._retain(ProgramTopic(), messages.encode(manifest))
        self._retain(RoundTopic(), messages.encode(_plan(self.ref, package_ref, spec.fingerprint)))

    def _retain(self, topic: Topic, payload: bytes) -> None:
        self.link.publish(TOPICS.name(topic), payload, retain=True)

    def answered(self, wait_s: float) -> bool:
        """Deals with one report; true for the one that says that the weights are there."""
        event = self.link.poll(wait_s)
        if not isinstance(event, Received):
            return False
        report = messages.decode(event.payload, messages.Report)
        if report.kind != "missing":
            # The weights fit no program: they were fetched all the same.
            return True
        for index in report.chunks if report.sha256 == self.ref.sha256 else ():
            self._retain(ChunkTopic(self.ref.sha256, index), self.chunks[index])
        return False


def _plan(weights: BlobRef, package: BlobRef, fingerprint: str) -> messages.RoundPlan:
    return messages.RoundPlan(
        session="s",
        coordinator_instance="c",
        round_id=1,
        state="open",
        version=0,
        blobs={"weights": weights},
        package=package.sha256,
        fingerprint=fingerprint,
        cohort=messages.Cohort(ids=("pi-0",)),
    )


def power_cuts() -> Report:
    """Bytes to a device that is killed in the middle of fetching over a link that loses chunks."""
    cuts = [_power_cut(seed) for seed in range(REPEATS)]
    return {key: spread(cut[key] for cut in cuts) for key in cuts[0]}


def _power_cut(seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    weights = np.random.default_rng(0).normal(size=MODEL_BYTES // 4).astype("<f4").tobytes()

    def loses(topic: str) -> bool:
        return "/blobs/" in topic and rng.random() < LOSS

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(LocalBroker("mosquitto"))
        proxy = stack.enter_context(Proxy(broker.port, loses))
        names = ("pi-0",)
        federation = Federation(folder, proxy.port, names, agent={"stall_s": 0.5}).write()
        coordinator = FakeCoordinator(broker, weights)
        stack.callback(coordinator.link.close)
        stack.enter_context(running(federation))
        federation.start("pi-0")
        ends_s = time.monotonic() + _LONGEST_S
        while _kept(federation, coordinator.ref) < MODEL_BYTES / 2 and time.monotonic() < ends_s:
            coordinator.answered(0.0)
        federation.kill("pi-0")
        before, kept = proxy.to_client, _kept(federation, coordinator.ref)
        federation.start("pi-0")
        while not coordinator.answered(0.5):
            if time.monotonic() > ends_s:
                raise RuntimeError(federation.said("pi-0"))
        return {
            "before_kill_bytes": before,
            "kept_bytes": kept,
            "after_kill_bytes": proxy.to_client - before,
            "lost_messages": proxy.lost,
        }


def _kept(federation: Federation, ref: BlobRef) -> int:
    file = federation.state("pi-0") / "blobs" / ref.sha256
    return file.stat().st_size if file.exists() else 0


# -- the broker's memory ------------------------------------------------------------------------


def broker_memory() -> Report:
    """RSS of Mosquitto with devices that ask for the weights and then take nothing."""
    weights = random.Random(1).randbytes(MODEL_BYTES)
    _, chunks = blobs.split(weights)
    return {
        "agents": STALLED_AGENTS,
        "model_bytes": MODEL_BYTES,
        "chunks": _broker_rss(chunks),
        "one_message": _broker_rss([weights]),
    }


def _broker_rss(payloads: list[bytes]) -> dict[str, float]:
    with LocalBroker("mosquitto") as broker, ExitStack() as stack:
        largest = broker.settings.__class__(host=HOST, port=broker.port, max_payload_bytes=1 << 24)
        link = MqttLink(largest, client_id="coordinator", session_expiry_s=0)
        link.open()
        for index, payload in enumerate(payloads):
            link.publish(TOPICS.name(ChunkTopic("a" * 64, index)), payload, retain=True)
        link.close()
        idle = _settled_rss(broker)
        for number in range(STALLED_AGENTS):
            stack.callback(_stalled_agent(broker.port, number).close)
        return {"idle_bytes": idle, "stalled_bytes": _settled_rss(broker)}


def _stalled_agent(port: int, number: int) -> socket.socket:
    """Connects, subscribes to the chunks, and reads nothing any more."""
    sock = socket.create_connection((HOST, port), 5)
    receive_maximum = b"\x03\x21\x00\x08"  # as an agent says
    name = b"stalled-%02d" % number
    connect = b"\x00\x04MQTT\x05\x02\x00\x3c" + receive_maximum + bytes([0, len(name)]) + name
    sock.sendall(bytes([0x10, len(connect)]) + connect)
    topic = TOPICS.chunks_of("a" * 64).encode()
    subscribe = b"\x00\x01\x00" + len(topic).to_bytes(2, "big") + topic + b"\x01"
    sock.sendall(bytes([0x82, len(subscribe)]) + subscribe)
    return sock


def _settled_rss(broker: LocalBroker) -> int:
    """Once it has not changed for half a second."""
    last, same = 0, 0
    for _ in range(100):
        status = Path(f"/proc/{broker.pid}/status").read_text()
        now = int(status.split("VmRSS:")[1].split()[0]) << 10
        same = same + 1 if now == last else 0
        if same == 5:
            break
        last = now
        time.sleep(0.1)
    return last


def lines(report: Report) -> Iterator[str]:
    """The report in words."""
    for victim, times in report["recovery_s"].items():
        yield f"{victim} killed: the next round is committed {shown(times, 1, 2)} s after its start"
    cut = {key: shown(values, 1e-6) for key, values in report["power_cut"].items()}
    yield (
        f"{MODEL_BYTES / 1e6:.0f} MB over a link that loses {LOSS:.0%}, killed with "
        f"{cut['kept_bytes']} MB kept and {cut['before_kill_bytes']} MB sent: "
        f"{cut['after_kill_bytes']} MB sent after it"
    )
    memory = report["broker_memory"]
    for kind, rss in (("in chunks", memory["chunks"]), ("in one message", memory["one_message"])):
        yield (
            f"broker, {memory['agents']} stalled agents, model {kind}: "
            f"{rss['stalled_bytes'] / 1e6:.0f} MB ({rss['idle_bytes'] / 1e6:.0f} MB before)"
        )


def main() -> None:
    """All three, one after another."""
    options = option_parser(__doc__).parse_args()
    report = {
        "recovery_s": recoveries(),
        "power_cut": power_cuts(),
        "broker_memory": broker_memory(),
        "budgets": [],
    }
    finish("recovery", report, options, lambda shown: print("\n".join(lines(shown))))


if __name__ == "__main__":
    main()

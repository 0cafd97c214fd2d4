"""The agent's shell: runs the state machine over a real link, with a worker for slow work."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import fedge
from broker.config import located
from broker.link import Link, Will
from broker.machine import Tick
from broker.mqtt import MqttLink
from broker.service import Service
from edge_agent.agent import Agent, AgentFacts
from edge_agent.chunks import ChunkStore
from edge_agent.config import AgentConfig
from edge_agent.device import memory_bytes
from edge_agent.events import (
    Action,
    BlobRecalled,
    CancelJob,
    Event,
    ForgetBlob,
    KeepChunk,
    LoadPackage,
    RecallBlob,
    SettleUpdate,
    SpoolUpdate,
    StartJob,
)
from edge_agent.spool import Spool
from edge_agent.worker import Worker
from models.errors import ModelError, StoreError
from models.program import find_runtime

log = logging.getLogger(__name__)

#: Between a device's silence and the broker's word for it: a short drop of Wi-Fi is no loss.
_WILL_DELAY_S = 5


class AgentService(Service):
    """One agent over one link."""

    def __init__(
        self, agent: Agent, link: Link, config: AgentConfig, base: Path, give_up_s: float | None
    ) -> None:
        super().__init__(link, give_up_s)
        self._agent = agent
        state_dir = located(config.state_dir, base)
        self._spool = Spool(state_dir, spool_limit(config))
        self._chunks = ChunkStore(state_dir, 3 * config.max_blob_bytes)
        self._worker = Worker(config, base, link.post)

    def handle(self, event: Event) -> Sequence[Action]:
        """See `Agent.handle`."""
        return self._agent.handle(event, time.monotonic())

    def wait_s(self) -> float:
        """Until the next heartbeat, stall or resend."""
        return self._agent.wait_s(time.monotonic())

    def wake(self) -> None:
        """Let the machine look at the clock."""
        if self._agent.wait_s(time.monotonic()) <= 0:
            self.dispatch(Tick())

    def perform(self, action: Action) -> None:
        """Write what must last; hand slow work to the worker."""
        try:
            self._perform(action)
        except StoreError as error:
            # A full disk costs safety against power cuts, not the round.
            log.warning("%s", error, extra={"event": "not_kept"})

    def _perform(self, action: Action) -> None:
        match action:
            case SpoolUpdate(update):
                self._spool.write(update)
            case SettleUpdate(accepted):
                self._spool.settle(accepted=accepted)
            case RecallBlob(sha256):
                self._link.post(BlobRecalled(sha256, tuple(self._chunks.recall(sha256))))
            case KeepChunk(sha256, payload):
                self._chunks.keep(sha256, payload)
            case ForgetBlob(sha256):
                self._chunks.forget(sha256)
            case LoadPackage() | StartJob():
                self._worker.submit(action)
            case CancelJob():
                self._worker.cancel()

    def run(self) -> None:
        """See `Service.run`."""
        try:
            super().run()
        finally:
            self._worker.stop()


def agent_facts(config: AgentConfig, boot: str) -> AgentFacts:
    """What is known of this device before it connects."""
    try:
        find_runtime(config.runtime)
        unable = ""
    except ModelError as error:
        unable = str(error)
        log.error("cannot take part: %s", error)
    return AgentFacts(
        agent_id=config.agent_id,
        federation=config.federation,
        boot=boot,
        tasks=config.tasks,
        tags=config.tags,
        unable=unable,
        memory_bytes=memory_bytes(),
        software=fedge.__version__,
        fingerprint=config.fingerprint,
        max_blob_bytes=config.max_blob_bytes,
        heartbeat_s=config.heartbeat_s,
    )


def spool_limit(config: AgentConfig) -> int:
    """Bytes of a spooled update: θ may be as large as a blob, its residual is of θ's size."""
    return 2 * config.max_blob_bytes + (1 << 20)


def run_agent(config: AgentConfig, base: Path, give_up_s: float | None = None) -> None:
    """Serve until stopped; paths in `config` are relative to `base`.

    Raises:
        LinkError: see `Service.run`.
        ConfigError: the broker's settings name files that cannot be read.
    """
    spool = Spool(located(config.state_dir, base), spool_limit(config))
    agent = Agent(agent_facts(config, secrets.token_hex(8)), spool.load())
    will = agent.will
    link = MqttLink(
        config.broker.located(base),
        client_id=f"fedge-{config.federation}-{config.agent_id}",
        will=Will(will.topic, will.payload, _WILL_DELAY_S),
    )
    AgentService(agent, link, config, base, give_up_s).run()

"""The simulated coordinator: `coordinator.service` in virtual time, its store in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from broker.link.link import Received, Will
from broker.service.events import LinkAction, Publish
from coordinator.config import CoordinatorConfig
from coordinator.machine.coordinator import Coordinator
from coordinator.machine.events import (
    Action,
    Finished,
    ForgetAgent,
    RoundEnded,
    SaveAgent,
    StoreUpdate,
)
from coordinator.operate import open_store
from coordinator.records.records import RoundRecord
from coordinator.rounds.stopping import stop_rule
from coordinator.service import sealed
from coordinator.storage.durability import Durability
from fleet.virtual.event_trace import Began, Flushed
from fleet.virtual.faults import COORDINATOR
from fleet.virtual.shells import Shell, World
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage

if TYPE_CHECKING:
    from broker.security.signing import Signer, SigningKeys

#: Duration of a disk flush; updates that arrive meanwhile are written together.
_FLUSH_S = 0.004


class CoordinatorShell(Shell):
    """The coordinator's process and its store.

    Args:
        world: of the simulation.
        config: of the federation.
        package: the model.
        measure: evaluates θ on the coordinator's own data; None without such data.
        keys: signing keys; None: messages are not signed.

    Attributes:
        store: the real one; a crash rolls back what was not flushed.
        records: of the rounds that have ended.
        finished: reason why the federation ended; empty until then.
    """

    manual_ack = True
    ticks_early = True

    def __init__(
        self,
        world: World,
        config: CoordinatorConfig,
        package: ModelPackage,
        measure: Callable[[F32], Sums] | None = None,
        keys: SigningKeys | None = None,
    ) -> None:
        super().__init__(world, COORDINATOR, f"fedge-{config.federation}-coordinator")
        self.config = config
        self.store = open_store(config, None)
        self.store.adopt(config.federation, package)
        self.records: list[RoundRecord] = []
        self.finished = ""
        self.machine: Coordinator | None = None
        self.on_round: Callable[[RoundRecord], None] | None = None
        self._package = package
        self._measure = measure
        self._keys = keys
        self._signer: Signer | None = None
        self._durability = Durability(self.store)

    def make_machine(self) -> Will:
        """Makes the coordinator from its store, like `coordinator.service.run_coordinator`."""
        store = self.store
        progress = store.load(self._package.spec.size, stop_rule(self.config))
        session = store.session(f"sim-{self.world.seed}")
        names: tuple[str, ...] = ()
        if self._keys is not None:
            names = tuple(key.hex() for key in self._keys.public)
            self._signer = self._new_signer(self._keys)
        machine = Coordinator(
            self.config,
            self._package,
            session,
            f"instance-{self.instance}",
            progress,
            self._measure,
            names,
        )
        if progress is None:
            store.begin(machine.progress.theta, machine.progress.state)
        store.finish("")
        self.machine, self._durability = machine, Durability(store)
        return Will(machine.will.topic, self.payload_of(machine.will))

    def _new_signer(self, keys: SigningKeys) -> Signer:
        from broker.security.signing import (
            Signer,
        )  # needs cryptography: only where messages are signed

        store = self.store
        return Signer(keys, store.signed_until, store.sign_until, lambda: int(self.now_s * 1000))

    def payload_of(self, action: Publish) -> bytes:
        """See `Shell`; signed like in `coordinator.service.CoordinatorService`."""
        if self._signer is None:
            return action.payload
        return sealed(action, self.coordinator.topics, self._signer).payload

    @property
    def coordinator(self) -> Coordinator:
        """The machine of this instance."""
        assert self.machine is not None, "not started"
        return self.machine

    def began(self) -> Began:
        """See `Shell`; with version and θ from the store."""
        progress = self.coordinator.progress
        return Began(self.now_s, self.name, self.instance, progress.version, progress.theta)

    def crash(self) -> None:
        """See `Shell`; loses what was not flushed."""
        if self.alive:
            self.store.lose_unflushed()
        super().crash()

    def handle(self, event: Any) -> Sequence[Action]:
        """See `Coordinator.handle`."""
        assert self.machine is not None, "not started"
        return self.machine.handle(event, self._broker.now_s)

    def wait_s(self) -> float:
        """See `Coordinator.wait_s`."""
        assert self.machine is not None, "not started"
        return self.machine.wait_s(self._broker.now_s)

    def send(self, action: LinkAction) -> None:
        """Sends now, or once the updates stored before it are on disk."""
        self._durability.after(lambda: super(CoordinatorShell, self).send(action))

    def finish(self, received: Received) -> None:
        """Acknowledges now, or once the message's update is on disk."""
        self._durability.after(lambda: self.link.acknowledge(received))
        if self._durability.is_full:
            self.settle()

    def settle(self) -> None:
        """Flushes the stored updates, then sends their receipts."""
        if not self._durability.unflushed:
            return
        held = self._durability.flush()
        self._tell_flushed()
        if self._actions_left is not None:  # a power cut after the flush, before the receipts
            self.crash()
            return
        for confirm in held:
            confirm()

    def _tell_flushed(self) -> None:
        self.world.tell(Flushed(self.now_s, self.name))

    def perform(self, action: Any) -> None:
        """Performs an action like `coordinator.service.CoordinatorService.perform`."""
        waiting = self._durability.unflushed
        is_stored = self._durability.perform(action)
        match action:
            case SaveAgent() | ForgetAgent():
                return  # written with the next updates
            case StoreUpdate():
                if not waiting:
                    self.later(_FLUSH_S, self.settle)
                return
            case RoundEnded(record):
                self.records.append(record)
                if self.on_round is not None:
                    self.on_round(record)
                return
            case Finished(reason):
                self.finished = reason
        if is_stored:
            self._tell_flushed()  # a transaction includes all that was added before it

    def feed(self, event: Any) -> None:
        """See `Shell`; ends the process when the federation has ended."""
        super().feed(event)
        if self.finished and self.alive and self.coordinator.finished is not None:
            self.finished, reason = "", self.finished
            self.stop("finished")
            self.finished = reason

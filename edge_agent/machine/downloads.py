"""Downloads: the model package and the plans' blobs, from announcement to memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker.protocol.messages import ProgramManifest
from edge_agent.machine.blob_fetcher import Fetcher, Progressed
from edge_agent.machine.events import Action, LoadPackage, PackageFailed, PackageLoaded
from edge_agent.machine.limits import Limits
from edge_agent.machine.package import CurrentPackage
from edge_agent.machine.rounds import Rounds
from edge_agent.machine.status import AgentFacts
from fedge.errors import WireError

log = logging.getLogger(__name__)


class Downloads:
    """Hands complete blobs to the worker (the package) and to the rounds (vectors).

    Args:
        facts: of this instance.
        fetcher: of blobs.
        package: the model package.
        limits: whether the network is metered.
        rounds: that plans' blobs are for.
        tell_status: actions that publish the agent's status.

    Attributes:
        failures: blobs that could not be fetched, since the start.
    """

    def __init__(
        self,
        facts: AgentFacts,
        fetcher: Fetcher,
        package: CurrentPackage,
        limits: Limits,
        rounds: Rounds,
        tell_status: Callable[[], list[Action]],
    ) -> None:
        self._facts = facts
        self._fetcher = fetcher
        self._package = package
        self._limits = limits
        self._rounds = rounds
        self._tell_status = tell_status
        self.failures = 0

    def new_manifest(self, manifest: ProgramManifest, now_s: float) -> list[Action]:
        """Fetches the package that is announced, unless it is here."""
        old = self._package.manifest
        self._package.announced(manifest)
        is_other = old is not None and old.package.sha256 != manifest.package.sha256
        forget = self._fetcher.forget(old.package) if old is not None and is_other else ()
        return [*forget, *self.get_package(now_s)]

    def get_package(self, now_s: float) -> list[Action]:
        """Fetches the package, if it is missing and the network is not metered."""
        ref = self._package.wanted
        if ref is None or self._facts.unavailable_reason or self._limits.metered:
            return []
        try:
            return list(self._fetcher.begin(ref, now_s).actions)
        except WireError as error:
            return self._failed(ref.sha256, str(error), now_s, is_transient=False)

    def try_again(self, now_s: float) -> list[Action]:
        """Fetches a package anew that failed for a transient reason."""
        self._package.try_again()
        return self.get_package(now_s)

    def progressed(self, progressed: Progressed, now_s: float) -> list[Action]:
        """Takes a step of fetching."""
        actions: list[Action] = list(progressed.actions)
        if progressed.missing is not None:
            actions += self._chunks_missing(*progressed.missing, now_s)
        if progressed.failed is not None:
            actions += self._failed(*progressed.failed, now_s, is_transient=True)
        if progressed.blob is not None:
            sha256, blob = progressed.blob
            if self._package.arrived(sha256):
                actions.append(LoadPackage(sha256, blob))
            else:
                actions += self._rounds.blob_arrived(sha256, blob, now_s)
        return actions

    def stop(self) -> list[Action]:
        """Stops all fetches: the network is metered now."""
        package = [] if self._package.wanted is None else [self._package.wanted]
        refs = [*package, *self._rounds.refs()]
        return [action for ref in refs for action in self._fetcher.pause(ref.sha256)]

    def _chunks_missing(self, sha256: str, chunks: tuple[int, ...], now_s: float) -> list[Action]:
        """Reports chunks that the broker does not deliver, unless their plan is given up."""
        rounds = self._rounds
        given_up = rounds.blob_stalled(sha256, now_s)
        if given_up is not None:
            return given_up
        if rounds.coordinator is None or rounds.coordinator.state != "online":
            return []
        return [rounds.reports.missing(rounds.coordinator, rounds.plan, sha256, chunks)]

    def _failed(self, sha256: str, why: str, now_s: float, *, is_transient: bool) -> list[Action]:
        self.failures += 1
        declined = self._rounds.blob_failed(sha256, why, now_s)
        if declined is not None:
            return declined
        failed = PackageFailed(sha256, "no_program", why, is_transient=is_transient)
        return self.package_failed(failed, now_s)

    def package_loaded(self, event: PackageLoaded, now_s: float) -> list[Action]:
        """Takes the worker's answer: the package can be used."""
        if not self._package.has_loaded(event):
            return []
        actions = self._rounds.outbox.model_is(event.model)
        pinned = self._facts.fingerprint
        if pinned not in (None, event.fingerprint):
            detail = f"layout {event.fingerprint}, this device trains {pinned} only"
            self._package.failed = PackageFailed(event.package, "fingerprint", detail)
        log.info(
            "model ready on %s: %d rows to learn from, %d held out",
            event.runtime,
            event.train_examples,
            event.test_examples,
        )
        return [*actions, *self._tell_status(), *self._rounds.advance(now_s)]

    def package_failed(self, event: PackageFailed, now_s: float) -> list[Action]:
        """Takes the worker's answer: the package cannot be used; or it could not be fetched."""
        if not self._package.cannot_be_used(event, now_s):
            return []
        return [*self._tell_status(), *self._rounds.advance(now_s)]

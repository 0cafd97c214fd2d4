"""The current model package: wanted, being loaded, loaded, or failed."""

from __future__ import annotations

import logging
import math
from random import Random

from broker.protocol.messages import BlobRef, ProgramManifest
from edge_agent.machine.events import PackageFailed, PackageLoaded

log = logging.getLogger(__name__)

#: Seconds until a package that failed for a transient reason is tried again; doubled each time,
#: with jitter. Chunks that a broker lost come back with the coordinator.
_AGAIN_S = 300.0
_LONGEST_AGAIN_S = 3600.0


class CurrentPackage:
    """Package of the newest manifest: first wanted, then being loaded, then loaded or failed.

    Args:
        rng: for jitter.

    Attributes:
        manifest: the newest; None before the first.
        wanted: the blob to fetch; None when it has come, or cannot be used.
        loaded: what the worker found, when the package can be used.
        failed: why it cannot be used.
        again_s: when `try_again` is due; infinite: never.
    """

    def __init__(self, rng: Random) -> None:
        self.manifest: ProgramManifest | None = None
        self.wanted: BlobRef | None = None
        self.loaded: PackageLoaded | None = None
        self.failed: PackageFailed | None = None
        self._loading: str | None = None  # the worker has its bytes
        self._rng = rng
        self._failures = 0
        self.again_s = math.inf

    def announced(self, manifest: ProgramManifest) -> None:
        """Takes a manifest: another package, or the same one in other chunks."""
        old, self.manifest = self.manifest, manifest
        if old is None or old.package.sha256 != manifest.package.sha256:
            self._failures = 0
            self._want(manifest.package)
        elif self.wanted is not None:
            self.wanted = manifest.package
        elif old.package != manifest.package and self.failed is not None:
            self.try_again()  # its chunks may be small enough now

    def _want(self, ref: BlobRef) -> None:
        self.wanted = ref
        self.loaded = self.failed = self._loading = None
        self.again_s = math.inf

    def arrived(self, sha256: str) -> bool:
        """Takes a complete blob; returns whether it is the package, for the worker to load."""
        if self.wanted is None or self.wanted.sha256 != sha256:
            return False
        self.wanted, self._loading = None, sha256
        return True

    def has_loaded(self, event: PackageLoaded) -> bool:
        """Takes the worker's answer; returns whether it is about this package."""
        if event.package != self._loading:
            return False
        self.loaded, self._loading, self._failures = event, None, 0
        return True

    def cannot_be_used(self, event: PackageFailed, now_s: float) -> bool:
        """Takes a failure to fetch or load; returns whether it is about this package."""
        if event.package not in (self._loading, self.wanted and self.wanted.sha256):
            return False
        self.failed, self.wanted, self._loading = event, None, None
        again = ""
        if event.is_transient:
            pause_s = min(_LONGEST_AGAIN_S, _AGAIN_S * 2.0**self._failures)
            pause_s *= self._rng.uniform(1.0, 1.5)
            self._failures += 1
            self.again_s = now_s + pause_s
            again = f"; trying again in {pause_s:.0f} s"
        log.error("cannot take part (%s): %s%s", event.reason, event.detail, again)
        return True

    def try_again(self) -> None:
        """Wants the package again if it failed for a transient reason."""
        if self.failed is not None and self.failed.is_transient:
            self._want_again()

    def try_in(self, available_bytes: int | None) -> None:
        """Wants the package again if it did not fit into memory and does now."""
        if self.failed is not None and 0 < self.failed.needs_bytes <= (available_bytes or 0):
            self._want_again()

    def _want_again(self) -> None:
        if self.manifest is not None:
            self._want(self.manifest.package)

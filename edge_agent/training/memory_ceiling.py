"""Memory ceiling: when a process that has grown should start anew, before the kernel ends it."""

from __future__ import annotations

import logging

from edge_agent.training.memory_estimate import megabytes

log = logging.getLogger(__name__)

#: A process above its ceiling must have been this much smaller after its first job: otherwise the
#: first job of a new one would bring it back there.
_WORTH_IT = 0.8
#: Part of a control group's limit that is the ceiling by default: above the whole of it the kernel
#: slows the process down (memory.high) or ends it (memory.max).
_OF_GROUP = 0.9


def default_ceiling(group_bytes: int | None) -> int | None:
    """Returns the ceiling of a process whose owner names none; None: there is none.

    Args:
        group_bytes: limit of the control group that the process runs in; None: no limit.
    """
    return None if group_bytes is None else int(_OF_GROUP * group_bytes)


class MemoryCeiling:
    """Ceiling of one process's resident memory.

    What it holds after its first job is what a new process would come to: where that is near the
    ceiling already, the process is not started anew time and again, but a warning is logged.

    Args:
        limit_bytes: None: there is no ceiling.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes
        self._first: int | None = None
        self._is_told = False

    def is_above(self, resident: int | None) -> bool:
        """Whether the process holds more than its ceiling."""
        return self._limit is not None and resident is not None and resident > self._limit

    def after_job(self, resident: int | None) -> bool:
        """Takes what the process holds after a job; returns whether it should start anew."""
        if self._limit is None or resident is None:
            return False
        if self._first is None:
            self._first = resident
        if resident <= self._limit:
            return False
        used, ceiling, first = map(megabytes, (resident, self._limit, self._first))
        if self._first <= _WORTH_IT * self._limit:
            log.warning(
                "%s of memory in use, ceiling %s, %s after the first job: starting anew",
                used, ceiling, first, extra={"event": "memory_ceiling"},
            )  # fmt: skip
            return True
        if not self._is_told:
            self._is_told = True
            log.warning(
                "%s of memory in use, ceiling %s, and %s after the first job: starting anew would "
                "not help; raise limits.max_memory_bytes or the control group's limit",
                used, ceiling, first, extra={"event": "memory_ceiling"},
            )  # fmt: skip
        return False

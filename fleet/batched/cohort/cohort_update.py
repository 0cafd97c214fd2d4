"""Updates of a cohort, as its devices make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.protocol.messages import VectorRef
from fleet.batched.cohort.device_states import CohortState
from learning.codecs.many import Payloads
from learning.vector.sums_table import SumsTable
from learning.vector.vectors import Vectors


@dataclass(frozen=True, eq=False)
class CohortUpdate:
    """Updates of n agents.

    Attributes:
        agents: numbers of the agents in their part of the fleet, shape (n,).
        refs: how to read each vector's part of a body, by name; of each agent.
        payloads: of each vector, by name.
        arrived: the vectors as the coordinator decodes them, float32, [n, L], by name.
        num_examples: rows learned from, shape (n,).
        sums: of the last epoch; their names are the agents' ids.
        seconds: virtual time of each training, shape (n,).
        state: of the devices once the updates count.
    """

    agents: NDArray[np.int64]
    refs: Sequence[Mapping[str, VectorRef]]
    payloads: Mapping[str, Payloads]
    arrived: Vectors
    num_examples: NDArray[np.int64]
    sums: SumsTable
    seconds: NDArray[np.float64]
    state: CohortState

    def __len__(self) -> int:
        return len(self.agents)

    def body(self, place: int) -> bytes:
        """Returns the encoded vectors of one agent, one behind the other."""
        return b"".join(bytes_of(payloads[place]) for payloads in self.payloads.values())


def bytes_of(payload: Any) -> bytes:
    """Returns one payload's bytes."""
    return payload.tobytes() if isinstance(payload, np.ndarray) else bytes(payload)

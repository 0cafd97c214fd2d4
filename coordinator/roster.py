"""Who is there: births and wills of agents, and what each link took in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from broker.messages import AgentStatus, Task

#: A fleet larger than this needs another coordinator; bounds memory against invented ids.
MAX_AGENTS = 100_000


@dataclass
class Entry:
    """One agent, as it last described itself.

    Attributes:
        status: of its current boot.
        received_bytes: by its link in this boot, as it last reported.
    """

    status: AgentStatus
    received_bytes: int = 0

    @property
    def online(self) -> bool:
        """Whether it was born and not yet lost."""
        return self.status.state == "online"


class Roster:
    """All agents that were heard of."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return iter(self._entries.items())

    def get(self, agent_id: str) -> Entry | None:
        """The agent's entry; None for one never heard of."""
        return self._entries.get(agent_id)

    def update(self, agent_id: str, status: AgentStatus) -> bool:
        """Take a birth or a will; False when it changes nothing.

        A will of an earlier boot may be published after the new birth: it is ignored.
        """
        entry = self._entries.get(agent_id)
        if entry is None:
            if len(self._entries) >= MAX_AGENTS or status.state == "offline":
                return False
            self._entries[agent_id] = Entry(status)
            return True
        if status.state == "offline" and status.boot != entry.status.boot:
            return False
        if status.boot != entry.status.boot:
            entry.received_bytes = 0
        entry.status = status
        return True

    def credit(self, agent_id: str, boot: str, received_bytes: int) -> int:
        """Bytes the agent took in since it last said so; 0 for another boot."""
        entry = self._entries.get(agent_id)
        if entry is None or entry.status.boot != boot:
            return 0
        new = max(0, received_bytes - entry.received_bytes)
        entry.received_bytes += new
        return new

    def able(self, task: Task, codec: str | None = None) -> list[str]:
        """Agents that can be asked for `task` now, sorted by id."""

        def can(status: AgentStatus) -> bool:
            rows = status.train_examples if task == "train" else status.test_examples
            return (
                status.state == "online"
                and not status.unable
                and task in status.tasks
                and rows > 0
                and (codec is None or codec in status.codecs)
            )

        return sorted(name for name, entry in self._entries.items() if can(entry.status))

"""Access rules of a fleet's broker: who may write and read what.

Whatever is not listed is denied. A client's name at the broker is the name of its certificate, and
each certificate has a name of its own, such as `pi-1.3f2a19c0`: rights belong to one certificate.
Who holds a revoked one has none, whether it is connected, comes with an earlier TLS session or
through WebSockets, and its device may be enrolled again under the same agent id.

Rules are literal: there are no patterns that a name could widen. They are written in two forms: for
the dynamic security plugin of Mosquitto (`broker.security.mosquitto.dynamic_security`), which is
changed while the broker runs, and as an access-control file, which Mosquitto reads again on SIGHUP.
A reload of Mosquitto 2.0 has a price: it may crash later (docs/security.md). Unlike the file, the
plugin checks SUBSCRIBE: with the file the broker grants a forbidden subscription but delivers
nothing, because each message is checked at delivery.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from broker.protocol.topics import Topics, check_id
from fedge.errors import ConfigError

#: The coordinator's name; devices must not use it.
COORDINATOR = "coordinator"

ACL_FILE = "access.acl"
#: The dynamic security plugin's file: also written by Mosquitto while it runs.
PLUGIN_FILE = "dynamic-security.json"
CONFIG_FILE = "mosquitto.conf"
PID_FILE = "mosquitto.pid"
DATA_FOLDER = "data"
CA_FILE = "ca.crt"
CRL_FILE = "ca.crl"
#: Links to the list of revoked certificates, see `broker.security.fleet_layout.publish_list`.
LISTS_FOLDER = "revoked"
#: Certificate and key in one file, so that they are replaced together.
SERVER_FILE = "server.pem"

_LOGIN = re.compile(r"[A-Za-z0-9_.@-]{1,64}", re.ASCII)
#: Letters of an id in a certificate's name, which has at most 64 (RFC 5280, ub-common-name).
_ID_LETTERS = 55

Kind = Literal["coordinator", "agent", "observer"]

# On its probe topic a client finds out how large a message the broker takes.
_WRITES: dict[Kind, tuple[str, ...]] = {
    "agent": (
        *("agents/{id}/status", "agents/{id}/updates/+/+", "agents/{id}/reports/+"),
        "agents/{id}/probe",
    ),
    "coordinator": (
        *("coordinator/status", "program", "round", "blobs/+/+", "agents/+/inbox"),
        *("results", "coordinator/probe"),
    ),
    "observer": (),
}
_READS: dict[Kind, tuple[str, ...]] = {
    "agent": (
        *("coordinator/status", "program", "round", "blobs/+/+", "agents/{id}/inbox"),
        "agents/{id}/probe",
    ),
    "coordinator": (
        *("agents/+/status", "agents/+/updates/+/+", "agents/+/reports/+"),
        "coordinator/probe",
    ),
    "observer": ("coordinator/status", "agents/+/status", "results"),
}


@dataclass(frozen=True, order=True)
class Member:
    """Client of a federation's broker.

    Attributes:
        login: its name at the broker.
        kind: what it is in the federation, which decides its rights.
        agent_id: its name in the federation.

    Raises:
        ConfigError: a name that could not be written into rules.
    """

    login: str
    kind: Kind
    agent_id: str

    def __post_init__(self) -> None:
        # Both are written into files that a line break or a wildcard would give another meaning.
        check_id(self.agent_id, "agent id")
        if not _LOGIN.fullmatch(self.login):
            raise ConfigError(
                f"login {self.login[:80]!r} is not allowed: use 1 to 64 letters, digits or -_.@"
            )


def check_device_id(agent_id: str) -> str:
    """Returns `agent_id` if it is a valid name of a device.

    Raises:
        ConfigError: not a plain id, or the coordinator's name.
    """
    check_id(agent_id, "agent id")
    if agent_id == COORDINATOR:
        raise ConfigError(f"agent id {agent_id!r} is the coordinator's name: choose another")
    return agent_id


def new_login(agent_id: str) -> str:
    """Returns a name for a new certificate: no other certificate has it, and no id contains a dot.

    Raises:
        ConfigError: not a plain id.
    """
    return f"{check_id(agent_id, 'agent id')[:_ID_LETTERS]}.{secrets.token_hex(4)}"


def is_login_of(login: str, agent_id: str) -> bool:
    """Returns whether a certificate's name may be one of `agent_id`."""
    return login.rpartition(".")[0] == agent_id[:_ID_LETTERS]


def written_topics(federation: str, member: Member) -> list[str]:
    """Returns the topic filters that `member` may publish to."""
    return _filters(federation, member, _WRITES[member.kind])


def read_topics(federation: str, member: Member) -> list[str]:
    """Returns the topic filters that `member` may subscribe to and receive from."""
    return _filters(federation, member, _READS[member.kind])


def _filters(federation: str, member: Member, tails: Iterable[str]) -> list[str]:
    root = Topics(federation).root
    return [root + tail.format(id=member.agent_id) for tail in tails]


def access_rules(federation: str, members: Iterable[Member], note: str = "") -> str:
    """Returns Mosquitto's access-control file: whatever it does not list is denied.

    Args:
        federation: name of the federation.
        members: clients of the broker.
        note: first line, a comment.

    Raises:
        ConfigError: the federation's name is not a plain id.
    """
    # No rule may stand before the first "user": Mosquitto would apply it to all clients.
    blocks = [f"# {note}"] if note else []
    for member in sorted(members):
        lines = [f"user {member.login}"]
        lines += [f"topic write {topic}" for topic in written_topics(federation, member)]
        lines += [f"topic read {topic}" for topic in read_topics(federation, member)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def agents_by_user_name(federation: str) -> str:
    """Returns rules for every user, as an agent whose name is the user's.

    They go behind the blocks of `access_rules`. A user of another role gains the topics of an agent
    of its own name, which nobody listens to. Not for fleets, whose logins are no agent ids.

    Raises:
        ConfigError: the federation's name is not a plain id.
    """
    root = Topics(federation).root
    lines = [f"pattern write {root}{tail.format(id='%u')}" for tail in _WRITES["agent"]]
    lines += [f"pattern read {root}{tail.format(id='%u')}" for tail in _READS["agent"]]
    return "\n" + "\n".join(lines) + "\n"


def may_write(federation: str, member: Member, topic: str) -> bool:
    """Returns whether the rules let `member` publish on `topic`."""
    return _is_covered(topic, written_topics(federation, member))


def may_read(federation: str, member: Member, topic_filter: str) -> bool:
    """Returns whether `member` may read every topic that `topic_filter` matches."""
    return _is_covered(topic_filter, read_topics(federation, member))


def _is_covered(topic: str, rules: Iterable[str]) -> bool:
    levels = topic.split("/")
    for rule in (text.split("/") for text in rules):
        # "+" matches one level, also a "+" of the filter; no rule contains "#".
        if len(rule) == len(levels) and all(
            have == want or (want == "+" and have != "#")
            for have, want in zip(levels, rule, strict=True)
        ):
            return True
    return False

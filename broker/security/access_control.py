"""Who may do what at the broker: Mosquitto's configuration and its access-control file.

Rules are literal, one block per device, with no pattern in which a name could mean more than
itself. Mosquitto reads the file again on SIGHUP, so a device comes and goes without a restart.

Why not the dynamic security plugin: Mosquitto 2.0 reads the plugin's file at start only and writes
over it while it runs, so nobody but an administrator connected over MQTT can change it, and there
would be two truths about who is enrolled. What the plugin checks and this file does not is
SUBSCRIBE: a forbidden subscription is granted and stays silent, because each message is checked
when it is delivered. The one attack that this leaves, taking messages away from a `$share` group,
has no target here: both links refuse to subscribe to one (`broker.link.link.check_filter`).

The price of a reload with Mosquitto 2.0: for a session whose client is away nothing more is
queued until it is back, and the broker may crash later (docs/security.md). The protocol bears both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from broker.protocol.topics import Topics, check_id
from fedge.errors import ConfigError

#: The coordinator's name at the broker; no device may have it.
COORDINATOR = "coordinator"

ACL_FILE = "access.acl"
CONFIG_FILE = "mosquitto.conf"
PID_FILE = "mosquitto.pid"
DATA_FOLDER = "data"
CA_FILE = "ca.crt"
CRL_FILE = "ca.crl"
#: Certificate and key, in one file: they are changed together or not at all.
SERVER_FILE = "server.pem"

_DEVICE_WRITES = ("agents/{id}/status", "agents/{id}/updates/+/+", "agents/{id}/reports/+")
_DEVICE_READS = ("coordinator/status", "program", "round", "blobs/+/+", "agents/{id}/inbox")
_COORDINATOR_WRITES = ("coordinator/status", "program", "round", "blobs/+/+", "agents/+/inbox")
_COORDINATOR_READS = ("agents/+/status", "agents/+/updates/+/+", "agents/+/reports/+")


def check_device_id(agent_id: str) -> str:
    """`agent_id`, when a device may be called so.

    Raises:
        ConfigError: not a plain id, or the coordinator's name.
    """
    check_id(agent_id, "agent id")
    if agent_id == COORDINATOR:
        raise ConfigError(f"agent id {agent_id!r} is the coordinator's name: take another")
    return agent_id


def access_rules(federation: str, agent_ids: Iterable[str]) -> str:
    """The access-control file: nothing is allowed but what it lists.

    Raises:
        ConfigError: a name that is not a plain id.
    """
    # Nothing may stand before the first "user": Mosquitto would grant it to everybody.
    blocks = [
        "# Written by `fedge broker`; changes by hand are lost with the next enrolment.",
        _block(federation, COORDINATOR, _COORDINATOR_WRITES, _COORDINATOR_READS),
    ]
    for agent_id in sorted(map(check_device_id, agent_ids)):
        blocks.append(_block(federation, agent_id, _DEVICE_WRITES, _DEVICE_READS))
    return "\n\n".join(blocks) + "\n"


def _block(federation: str, name: str, writes: Sequence[str], reads: Sequence[str]) -> str:
    root = Topics(federation).root
    lines = [f"user {name}"]
    lines += [f"topic write {root}{tail.format(id=name)}" for tail in writes]
    lines += [f"topic read {root}{tail.format(id=name)}" for tail in reads]
    return "\n".join(lines)


def may_write(federation: str, name: str, topic: str) -> bool:
    """Whether the rules let `name` publish on `topic`, if it is enrolled."""
    tails = _COORDINATOR_WRITES if name == COORDINATOR else _DEVICE_WRITES
    return _is_covered(federation, name, topic, tails)


def may_read(federation: str, name: str, topic_filter: str) -> bool:
    """Whether all that `topic_filter` reaches is for `name` to read, if it is enrolled."""
    tails = _COORDINATOR_READS if name == COORDINATOR else _DEVICE_READS
    return _is_covered(federation, name, topic_filter, tails)


def _is_covered(federation: str, name: str, topic: str, tails: Sequence[str]) -> bool:
    root, levels = Topics(federation).root, topic.split("/")
    for tail in tails:
        rule = (root + tail.format(id=name)).split("/")
        # "+" stands for one level, of a filter too; "#" is in no rule.
        if len(rule) == len(levels) and all(
            have == want or (want == "+" and have != "#")
            for have, want in zip(levels, rule, strict=True)
        ):
            return True
    return False


@dataclass(frozen=True)
class ListenerSettings:
    """Where the broker listens and as whom.

    Attributes:
        port: of TLS.
        bind: address of the interface; empty: all.
        user: account that Mosquitto runs under when started by root.
        websockets: port of WebSockets in TLS; 0: none.
    """

    port: int
    bind: str
    user: str
    websockets: int = 0


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` is; None: a name, or nothing of the kind."""
    if "%" in host:  # behind it Python takes anything, line breaks included, for an IPv6 scope
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def address_family(host: str) -> Literal["ipv4", "ipv6"] | None:
    """Of an address; None: it is none."""
    address = address_of(host)
    if address is None:
        return None
    return "ipv4" if address.version == 4 else "ipv6"


def mosquitto_config(folder: Path, listener: ListenerSettings) -> str:
    """Mosquitto's configuration with its files in `folder`.

    Raises:
        ConfigError: the folder's name would change the meaning of a line.
    """
    if any(not character.isprintable() for character in str(folder)) or "#" in str(folder):
        raise ConfigError(f"{str(folder)!r}: Mosquitto takes no such folder name")
    files = {
        "folder": folder,
        "acl": ACL_FILE,
        "pid": PID_FILE,
        "data": DATA_FOLDER,
        "ca": CA_FILE,
        "crl": CRL_FILE,
        "server": SERVER_FILE,
    }
    bind = listener.bind
    listeners = _LISTENER.format(
        listener=f"{listener.port} {bind}".rstrip(), protocol="mqtt", **files
    )
    if listener.websockets:
        # Without its family Mosquitto 2.0 passes over the address and listens on all.
        family = f"\nsocket_domain {address_family(bind)}" if bind else ""
        listeners += _WEBSOCKETS + _LISTENER.format(
            listener=f"{listener.websockets} {bind}".rstrip(),
            protocol=f"websockets{family}",
            **files,
        )
    return _CONFIG.format(user=listener.user, listeners=listeners, **files)


# Comments stand on lines of their own: behind a value they would be part of it.
_LISTENER = """\
listener {listener}
protocol {protocol}
cafile {folder}/{ca}
certfile {folder}/{server}
keyfile {folder}/{server}
crlfile {folder}/{crl}
tls_version tlsv1.2
require_certificate true
# The user name is the certificate's name; what a client says it is called does not count.
use_identity_as_username true
# So is the client id: whatever id a client presents, it gets its own session and nobody else's.
use_username_as_clientid true
allow_anonymous false
allow_zero_length_clientid false
# Mosquitto 2.0.11 forgets this one at the first reload; LimitNOFILE of its unit holds then.
max_connections 10000
max_qos 1
"""

_WEBSOCKETS = """
# The same in WebSockets. Here Mosquitto 2.0 does not look at the list of revoked certificates until
# its second reload: who is revoked gets in and may do nothing; an old key of a device that has a
# new one still works.
"""

_CONFIG = """\
# One broker for one federation, written by `fedge broker init`. Yours to change; it is not
# written again. Reload after a change of the limits: kill -HUP $(cat {folder}/{pid})

per_listener_settings false
# Who Mosquitto becomes when root starts it.
user {user}
pid_file {folder}/{pid}

# --- the only way in: TLS 1.2 or newer with a certificate of this fleet ---
{listeners}
# --- who may do what ---
acl_file {folder}/{acl}

# --- limits ---
# A payload is at most 1 MiB (`max_payload_bytes` of agents and coordinator); a packet adds its
# topic, which may have 65,535 bytes.
max_packet_size 1114112
max_keepalive 3600
max_inflight_messages 100
# For each client that is away or slow. A blob of 64 MiB is 547 chunks, all queued at once.
max_queued_messages 20000
max_queued_bytes 134217728
queue_qos0_messages false
# Of the whole broker: beyond it Mosquitto refuses, before the machine kills it.
memory_limit 2147483648
persistent_client_expiration 7d
max_topic_alias 10
# Without it each small answer waits 40 ms for the one before.
set_tcp_nodelay true
sys_interval 30

# --- what survives a restart: sessions and retained messages, at most 30 s old ---
persistence true
persistence_location {folder}/{data}/
autosave_interval 30
autosave_on_changes false

log_dest stderr
log_type error
log_type warning
log_type notice
log_type information
# Uncomment both to have every refusal in the log, for `fedge broker refusals` to read.
#log_type debug
#log_type subscribe
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""

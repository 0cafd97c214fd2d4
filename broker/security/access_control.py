"""Mosquitto's configuration file and access-control file.

Rules are literal, one block per device: there are no patterns that a device name could widen.
Mosquitto reads the file again on SIGHUP, so devices are enrolled and revoked without a restart.

Why not the dynamic security plugin: Mosquitto 2.0 reads the plugin's file at start only and
overwrites it while it runs. Only an administrator connected over MQTT could change it, and enrolled
devices would be listed in two places. Unlike this file, the plugin checks SUBSCRIBE: here the
broker grants a forbidden subscription but delivers nothing, because each message is checked at
delivery. The one remaining attack, taking messages away from a `$share` group, has no target: both
links refuse to subscribe to such a group (`broker.link.link.check_filter`).

A reload of Mosquitto 2.0 has a price: the broker queues no more messages for disconnected clients
until they reconnect, and may crash later (docs/security.md). The protocol tolerates both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from broker.protocol.topics import Topics, check_id
from fedge.errors import ConfigError

#: The coordinator's name at the broker; devices must not use it.
COORDINATOR = "coordinator"

ACL_FILE = "access.acl"
CONFIG_FILE = "mosquitto.conf"
PID_FILE = "mosquitto.pid"
DATA_FOLDER = "data"
CA_FILE = "ca.crt"
CRL_FILE = "ca.crl"
#: Certificate and key in one file, so that they are replaced together.
SERVER_FILE = "server.pem"

# On its probe topic a client finds out how large a message the broker takes.
_DEVICE_WRITES = (
    *("agents/{id}/status", "agents/{id}/updates/+/+", "agents/{id}/reports/+"),
    "agents/{id}/probe",
)
_DEVICE_READS = (
    *("coordinator/status", "program", "round", "blobs/+/+", "agents/{id}/inbox"),
    "agents/{id}/probe",
)
_COORDINATOR_WRITES = (
    *("coordinator/status", "program", "round", "blobs/+/+", "agents/+/inbox"),
    *("results", "coordinator/probe"),
)
_COORDINATOR_READS = (
    *("agents/+/status", "agents/+/updates/+/+", "agents/+/reports/+"),
    "coordinator/probe",
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


def access_rules(federation: str, agent_ids: Iterable[str]) -> str:
    """Returns the access-control file: whatever it does not list is denied.

    Raises:
        ConfigError: a name that is not a plain id.
    """
    # No rule may stand before the first "user": Mosquitto would apply it to all clients.
    blocks = [
        "# Written by `fedge broker`; the next enrolment overwrites manual changes.",
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
    """Returns whether the rules let `name` publish on `topic`, if it is enrolled."""
    tails = _COORDINATOR_WRITES if name == COORDINATOR else _DEVICE_WRITES
    return _is_covered(federation, name, topic, tails)


def may_read(federation: str, name: str, topic_filter: str) -> bool:
    """Returns whether `name` may read every topic that `topic_filter` matches, if enrolled."""
    tails = _COORDINATOR_READS if name == COORDINATOR else _DEVICE_READS
    return _is_covered(federation, name, topic_filter, tails)


def _is_covered(federation: str, name: str, topic: str, tails: Sequence[str]) -> bool:
    root, levels = Topics(federation).root, topic.split("/")
    for tail in tails:
        rule = (root + tail.format(id=name)).split("/")
        # "+" matches one level, also a "+" of the filter; no rule contains "#".
        if len(rule) == len(levels) and all(
            have == want or (want == "+" and have != "#")
            for have, want in zip(levels, rule, strict=True)
        ):
            return True
    return False


@dataclass(frozen=True)
class ListenerSettings:
    """Settings of the broker's listeners.

    Attributes:
        port: TLS port.
        bind: address of the interface; empty: all interfaces.
        user: account that Mosquitto runs under when started by root.
        websockets: port of WebSockets over TLS; 0: none.
    """

    port: int
    bind: str
    user: str
    websockets: int = 0


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Returns `host` as an IP address; None if it is not one."""
    if "%" in host:  # Python accepts any text after it as IPv6 scope, line breaks included
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def address_family(host: str) -> Literal["ipv4", "ipv6"] | None:
    """Returns the family of an IP address; None if `host` is not one."""
    address = address_of(host)
    if address is None:
        return None
    return "ipv4" if address.version == 4 else "ipv6"


def mosquitto_config(folder: Path, listener: ListenerSettings) -> str:
    """Returns Mosquitto's configuration with its files in `folder`.

    Raises:
        ConfigError: the folder's name contains characters that change the meaning of a line.
    """
    if any(not character.isprintable() for character in str(folder)) or "#" in str(folder):
        raise ConfigError(f"{str(folder)!r}: Mosquitto cannot use this folder name")
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
        # Without the family Mosquitto 2.0 ignores the address and listens on all interfaces.
        family = f"\nsocket_domain {address_family(bind)}" if bind else ""
        listeners += _WEBSOCKETS + _LISTENER.format(
            listener=f"{listener.websockets} {bind}".rstrip(),
            protocol=f"websockets{family}",
            **files,
        )
    return _CONFIG.format(user=listener.user, listeners=listeners, **files)


# Comments are on lines of their own: Mosquitto takes a comment after a value as part of the value.
_LISTENER = """\
listener {listener}
protocol {protocol}
cafile {folder}/{ca}
certfile {folder}/{server}
keyfile {folder}/{server}
crlfile {folder}/{crl}
tls_version tlsv1.2
require_certificate true
# The user name is the certificate's name; the name that a client sends is ignored.
use_identity_as_username true
# So is the client id: whatever id a client sends, it gets its own session only.
use_username_as_clientid true
allow_anonymous false
allow_zero_length_clientid false
# Mosquitto 2.0.11 forgets this limit at the first reload; then LimitNOFILE of its unit applies.
max_connections 10000
max_qos 1
"""

_WEBSOCKETS = """
# The same over WebSockets. Here Mosquitto 2.0 ignores the list of revoked certificates until its
# second reload: a revoked device can connect but has no rights; the old key of a rotated device
# still works.
"""

_CONFIG = """\
# One broker for one federation, written by `fedge broker init`. You may change it; it is not
# written again. Reload after a change of the limits: kill -HUP $(cat {folder}/{pid})

per_listener_settings false
# Account of Mosquitto when root starts it.
user {user}
pid_file {folder}/{pid}

# --- listeners: TLS 1.2 or newer with a certificate of this fleet ---
{listeners}
# --- access rules ---
acl_file {folder}/{acl}

# --- limits ---
# A payload is at most 1 MiB (`max_payload_bytes` of agents and coordinator); a packet adds its
# topic, which may have 65,535 bytes.
max_packet_size 1114112
max_keepalive 3600
max_inflight_messages 100
# For each disconnected or slow client. A blob of 64 MiB is 547 chunks, all queued at once.
max_queued_messages 20000
max_queued_bytes 134217728
queue_qos0_messages false
# Of the whole broker: Mosquitto refuses messages beyond it, before the kernel kills the process.
memory_limit 2147483648
persistent_client_expiration 7d
max_topic_alias 10
# Without it each small answer waits 40 ms for the previous one.
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
# Uncomment both to log every refusal, for `fedge broker refusals`.
#log_type debug
#log_type subscribe
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""

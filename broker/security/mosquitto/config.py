"""Mosquitto's configuration file."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from broker.security.access_control import (
    ACL_FILE,
    CA_FILE,
    CRL_FILE,
    DATA_FOLDER,
    LISTS_FOLDER,
    PID_FILE,
    PLUGIN_FILE,
    SERVER_FILE,
)
from fedge.errors import ConfigError

_PLUGIN = "mosquitto_dynamic_security.so"
#: Where packages put Mosquitto's plugins.
_LIBRARIES = ("/usr/lib", "/usr/local/lib", "/opt/homebrew/lib", "/lib")


def find_plugin() -> str:
    """Returns the path of Mosquitto's dynamic security plugin; empty: not on this machine."""
    for folder in map(Path, _LIBRARIES):
        for found in (folder / _PLUGIN, *sorted(folder.glob(f"*-linux-*/{_PLUGIN}"))):
            if found.is_file():
                return str(found)
    return ""


@dataclass(frozen=True)
class ListenerSettings:
    """Settings of the broker's listeners.

    Attributes:
        port: TLS port.
        bind: address of the interface; empty: all interfaces.
        user: account that Mosquitto runs under when started by root.
        websockets: port of WebSockets over TLS; 0: none.
        plugin: path of the dynamic security plugin; empty: an access-control file.
    """

    port: int
    bind: str
    user: str
    websockets: int = 0
    plugin: str = ""


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
    for path in (str(folder), listener.plugin):
        if any(not character.isprintable() for character in path) or "#" in path:
            raise ConfigError(f"{path!r}: Mosquitto cannot use this name")
    files = {
        "folder": folder,
        "pid": PID_FILE,
        "data": DATA_FOLDER,
        "ca": CA_FILE,
        "crl": CRL_FILE,
        "lists": LISTS_FOLDER,
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
    rules, memory = _FILE_RULES.format(folder=folder, acl=ACL_FILE), _MEMORY
    if listener.plugin:
        rules = _PLUGIN_RULES.format(plugin=listener.plugin, folder=folder, file=PLUGIN_FILE)
        memory = _PLUGIN_MEMORY
    return _CONFIG.format(
        user=listener.user, listeners=listeners, rules=rules, memory=memory, **files
    )


# Comments are on lines of their own: Mosquitto takes a comment after a value as part of the value.
_LISTENER = """\
listener {listener}
protocol {protocol}
cafile {folder}/{ca}
certfile {folder}/{server}
keyfile {folder}/{server}
crlfile {folder}/{crl}
# Newer lists of revoked certificates are found here by each connection, without a reload.
capath {folder}/{lists}
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
# The same over WebSockets. Here Mosquitto 2.0 ignores the lists of revoked certificates: with one a
# client can connect, and has no rights.
"""

_FILE_RULES = "acl_file {folder}/{acl}"

_PLUGIN_RULES = """\
# The file is the plugin's own. `fedge broker` changes the rules over MQTT while Mosquitto runs.
plugin {plugin}
plugin_opt_config_file {folder}/{file}"""

_MEMORY = """\
# Of the whole broker: Mosquitto refuses messages beyond it, before the kernel kills the process.
memory_limit 2147483648"""

_PLUGIN_MEMORY = """\
# Not with Mosquitto 2.0, which counts wrongly with this plugin, and soon refuses every connection:
# its unit limits the memory instead. From 2.1 on remove the first sign.
#memory_limit 2147483648"""

_CONFIG = """\
# One broker for one federation, written by `fedge broker init`. You may change it; it is not
# written again. Restart Mosquitto after a change.

per_listener_settings false
# Account of Mosquitto when root starts it.
user {user}
pid_file {folder}/{pid}

# --- listeners: TLS 1.2 or newer with a certificate of this fleet ---
{listeners}
# --- access rules ---
{rules}

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
{memory}
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
# Uncomment to log every refusal, for `fedge broker refusals`.
#log_type debug
log_timestamp_format %Y-%m-%dT%H:%M:%S
"""

"""Access rules for Mosquitto's dynamic security plugin: its file, and what must change in a broker.

Each kind of member has a role with the topics that all of its kind use; an agent has a second role
with the topics of its own name. A client is a certificate's name. The administrator's certificate
may change all of this over MQTT and do nothing else.

Source: plugin's documentation, https://mosquitto.org/documentation/dynamic-security/; checked with
Mosquitto 2.0.11 and 2.1.2, whose plugin substitutes no names in topics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from broker.security.access_control import Member, read_topics, written_topics

#: Name of the certificates that may change the rules. No id contains a dot, no other name lacks it.
ADMINISTRATOR = "administrator"
TOPIC = "$CONTROL/dynamic-security/v1"
RESPONSE = f"{TOPIC}/response"

#: Begin of the name of an agent's second role.
_OWN = "agent "
#: A role's rules: the plugin's `acltype` and topic of each, all of them permissions.
_Rules = frozenset[tuple[str, str]]
Command = dict[str, Any]


class Rights(msgspec.Struct, frozen=True):
    """Clients and roles of a broker.

    Attributes:
        clients: names of roles by client; a disabled client counts as without.
        roles: rules by role.
    """

    clients: Mapping[str, frozenset[str]]
    roles: Mapping[str, _Rules]


def wanted(federation: str, members: Iterable[Member]) -> Rights:
    """Returns the clients and roles of the federation's members."""
    clients: dict[str, frozenset[str]] = {}
    roles: dict[str, _Rules] = {}
    for member in members:
        rules = _rules(written_topics(federation, member), read_topics(federation, member))
        own = frozenset(rule for rule in rules if f"/agents/{member.agent_id}/" in rule[1])
        names: dict[str, _Rules] = {member.kind: rules - own}
        if own:
            names[_OWN + member.agent_id] = own
        roles |= names
        clients[member.login] = frozenset(names)
    return Rights(clients, roles)


def _rules(writes: Iterable[str], reads: Iterable[str]) -> _Rules:
    sends = {("publishClientSend", topic) for topic in writes}
    return frozenset(sends).union(
        (kind, topic) for topic in reads for kind in ("publishClientReceive", "subscribePattern")
    )


def _administrator() -> Rights:
    rules = _rules([TOPIC], [RESPONSE])
    return Rights({ADMINISTRATOR: frozenset({ADMINISTRATOR})}, {ADMINISTRATOR: rules})


def plugin_file(want: Rights, known: Iterable[str] = (), before: bytes = b"") -> bytes:
    """Returns the plugin's file for a broker that is to be started: the administrator's too.

    Args:
        want: clients and roles of the fleet.
        known: every client that the fleet ever had.
        before: the present file: clients, roles and groups that somebody else made stay.
    """
    admin = _administrator()
    clients, roles = {**admin.clients, **want.clients}, {**admin.roles, **want.roles}
    ours = {*known, *clients}
    earlier = _earlier(before)
    document = earlier | {
        "clients": [
            *({"username": name, "roles": _role_names(r)} for name, r in sorted(clients.items())),
            *(c for c in earlier["clients"] if c.get("username") not in ours),
        ],
        "roles": [
            *({"rolename": name, "acls": _acls(rules)} for name, rules in sorted(roles.items())),
            *(r for r in earlier["roles"] if not _is_ours(str(r.get("rolename")), roles)),
        ],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _is_ours(role: str, roles: Iterable[str]) -> bool:
    return role in roles or role.startswith(_OWN)


def _earlier(data: bytes) -> dict[str, Any]:
    """Returns the parts of a file; those of a new one where it has none, or is damaged."""
    parts: dict[str, Any] = {
        "defaultACLAccess": {
            "publishClientSend": False,
            "publishClientReceive": False,
            "subscribe": False,
            "unsubscribe": True,
        },
        "clients": [],
        "groups": [],
        "roles": [],
    }
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        found = msgspec.json.decode(data, type=dict[str, Any])
        parts |= {
            key: found[key] for key, part in parts.items() if type(found.get(key)) is type(part)
        }
    for key in ("clients", "roles"):
        parts[key] = [entry for entry in parts[key] if isinstance(entry, dict)]
    return parts


def commands(want: Rights, found: Rights, known: Iterable[str]) -> list[Command]:
    """Returns the commands that make a broker's rules those that are wanted.

    Clients that the fleet never certified are left alone: somebody else made them.

    Args:
        want: clients and roles to be.
        found: clients and roles of the broker.
        known: every client that the fleet ever had.
    """
    # First take away: deleting a client ends its connection.
    gone = sorted(set(known) & set(found.clients) - set(want.clients))
    made: list[Command] = [{"command": "deleteClient", "username": name} for name in gone]
    for role in sorted(set(found.roles) - set(want.roles)):
        if role.startswith(_OWN):
            made.append({"command": "deleteRole", "rolename": role})
    for role, rules in sorted(want.roles.items()):
        if found.roles.get(role) != rules:
            verb = "modifyRole" if role in found.roles else "createRole"
            made.append({"command": verb, "rolename": role, "acls": _acls(rules)})
    for name, roles in sorted(want.clients.items()):
        if name not in found.clients:
            made.append(_client("createClient", name, roles))
        elif found.clients[name] != roles:
            made.append(_client("modifyClient", name, roles))
            made.append({"command": "enableClient", "username": name})
    return made


def commands_for_users(federation: str, want: Rights) -> list[Command]:
    """Returns commands that give rights to users, who may exist already or not.

    A command for what is there already fails alone; the others are run. The broker may serve other
    federations, and others than federations: roles have the federation's name.
    """
    made: list[Command] = []
    for role, rules in sorted(want.roles.items()):
        name = f"fedge {federation} {role}"
        made.append({"command": "createRole", "rolename": name, "acls": _acls(rules)})
    for name, roles in sorted(want.clients.items()):
        made.append({"command": "createClient", "username": name})
        made += [
            {
                "command": "addClientRole",
                "username": name,
                "rolename": f"fedge {federation} {role}",
            }
            for role in sorted(roles)
        ]
    return made


def _client(command: str, name: str, roles: frozenset[str]) -> Command:
    return {"command": command, "username": name, "roles": _role_names(roles)}


def _role_names(roles: Iterable[str]) -> list[dict[str, str]]:
    return [{"rolename": role} for role in sorted(roles)]


def _acls(rules: _Rules) -> list[dict[str, Any]]:
    return [
        {"acltype": kind, "topic": topic, "priority": 0, "allow": True}
        for kind, topic in sorted(rules)
    ]


def found_clients(listed: Iterable[Any]) -> dict[str, frozenset[str]]:
    """Returns the clients in an answer to `listClients`, verbose."""
    return {
        client["username"]: frozenset()
        if client.get("disabled")
        else frozenset(role["rolename"] for role in client.get("roles", ()))
        for client in listed
    }


def found_roles(listed: Iterable[Any]) -> dict[str, _Rules]:
    """Returns the roles in an answer to `listRoles`, verbose. A prohibition is no known rule."""
    return {
        role["rolename"]: frozenset(
            (acl["acltype"] if acl["allow"] else f"no {acl['acltype']}", acl["topic"])
            for acl in role.get("acls", ())
        )
        for role in listed
    }

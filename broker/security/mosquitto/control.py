"""Connection of the administrator to a running Mosquitto with the dynamic security plugin."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.security.mosquitto.dynamic_security import (
    ADMINISTRATOR,
    RESPONSE,
    TOPIC,
    Command,
    Rights,
    found_clients,
    found_roles,
)
from fedge.errors import LinkError

#: A broker on this machine answers in milliseconds; one that is not there must not hold us up.
_CONNECT_S, _ANSWER_S = 3.0, 20.0
_KEEPALIVE_S = 30
#: Entries in one answer: some 50 KB.
_PAGE = 100
#: Commands in one message. Mosquitto 2.0 writes its file after each, 70 ms with 500 devices, and
#: serves nobody else until the message is done.
_TOGETHER = 10
_FAILURE = 0x80


class NoBroker(LinkError):
    """No broker of this fleet listens at an address."""


class Control:
    """Administrator's connection: runs commands of the plugin, one message after the other.

    Used in a `with` block by one thread; paho runs no thread of its own.

    Args:
        host: name or address of the broker.
        port: TLS port.
        context: with the administrator's certificate; trusts this fleet's authority alone.

    Raises:
        NoBroker: on entering: nobody listens, or not a broker of this fleet.
        LinkError: the broker does not answer, or has no such plugin or administrator.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._where = f"broker {host}:{port}"
        self._address = (host, port)
        self._context = context
        self._answers: dict[str, list[Any]] = {"connect": [], "subscribe": [], "publish": []}
        self._responses: list[Any] = []
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            ADMINISTRATOR,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        client = self._client
        client.connect_timeout = _CONNECT_S
        client.tls_set_context(context)
        client.on_connect = lambda _c, _d, _f, code, _p: self._answers["connect"].append(code)
        client.on_subscribe = lambda _c, _d, _m, codes, _p: self._answers["subscribe"].extend(codes)
        client.on_publish = lambda _c, _d, _m, code, _p: self._answers["publish"].append(code)
        client.on_message = lambda _c, _d, message: self._take(bytes(message.payload))
        client.on_socket_open = _without_delay

    def __enter__(self) -> Control:
        try:
            # Tried first: after a failed handshake paho leaves its socket open.
            with socket.create_connection(self._address, _CONNECT_S) as plain:
                self._context.wrap_socket(plain).close()
            self._client.connect(*self._address, keepalive=_KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise NoBroker(f"{self._where}: {error}") from error
        try:
            self._expect("connect", "refuses this fleet's administrator")
            self._client.subscribe(RESPONSE, 1)
            self._expect("subscribe", _NO_PLUGIN)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
            self._client.loop(0.1)

    def run(self, commands: Sequence[Command]) -> None:
        """Runs commands in their order.

        Raises:
            LinkError: no answer, or a command failed; later ones may have been run.
        """
        for response in self._run(commands):
            if error := response.get("error"):
                raise LinkError(f"{self._where}: {response.get('command')}: {error}")

    def rights(self) -> Rights:
        """Returns the clients and roles that the broker has.

        Raises:
            LinkError: no answer.
        """
        clients = found_clients(self._listed("listClients", "clients"))
        return Rights(clients, found_roles(self._listed("listRoles", "roles")))

    def _listed(self, command: str, key: str) -> Iterator[Any]:
        offset, total = 0, 1
        while offset < total:
            page = {"command": command, "verbose": True, "count": _PAGE, "offset": offset}
            (response,) = self._run([page])
            data = response.get("data", {})
            total = data.get("totalCount", 0)
            yield from data.get(key, ())
            offset += _PAGE

    def _run(self, commands: Sequence[Command]) -> list[Any]:
        responses: list[Any] = []
        for begin in range(0, len(commands), _TOGETHER):
            some = commands[begin : begin + _TOGETHER]
            self._responses.clear()
            self._client.publish(TOPIC, msgspec.json.encode({"commands": some}), 1)
            self._expect("publish", _NO_PLUGIN)
            self._wait(lambda: len(self._responses) >= len(some))  # noqa: B023 - not kept
            responses += self._responses
        return responses

    def _expect(self, what: str, refusal: str) -> None:
        answers = self._answers[what]
        self._wait(lambda: bool(answers))
        if answers.pop().value >= _FAILURE:
            raise LinkError(f"{self._where} {refusal}")

    def _wait(self, is_done: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + _ANSWER_S
        while not is_done():
            if self._client.loop(0.2) != paho.MQTT_ERR_SUCCESS:
                raise LinkError(f"{self._where} ended the administrator's connection")
            if time.monotonic() > deadline_s:
                raise LinkError(f"{self._where} did not answer within {_ANSWER_S:g} s")

    def _take(self, payload: bytes) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            self._responses += msgspec.json.decode(payload).get("responses", [])


_NO_PLUGIN = "lets nobody change its rules: is the dynamic security plugin loaded, with its file?"


def _without_delay(_client: object, _data: object, sock: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def administrator_context(authority: str, identity: str) -> ssl.SSLContext:
    """Returns the TLS settings of the administrator.

    Args:
        authority: the fleet's authority, PEM.
        identity: path of the administrator's certificate and key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority)
    context.load_cert_chain(identity)
    # This authority certifies no server but the fleet's broker, whatever its address here.
    context.check_hostname = False
    return context

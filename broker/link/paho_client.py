"""paho without its thread: a `NetworkLoop` reads, writes and keeps the time for it.

Everything here runs on the network thread, except `paho.Client.reconnect`, which runs in a
connector thread while this one keeps its hands off the client. So paho is never called by two
threads at a time.

paho surprises that shaped this file (2.1 and 2.2):

- `reconnect` blocks (DNS, TCP, TLS handshake); everything after it does not.
- Callbacks run under a lock that is not reentrant and that closing a socket takes as well: closing
  or reconnecting inside a callback is a deadlock. Put such things off with `NetworkLoop.soon`.
- A callback that raises leaves the packet in the input buffer, to be handled again for ever.
- `on_disconnect` can come twice for one connection (a keep-alive that expires).
- The one public way to drop a connection without a DISCONNECT is `connect_async`.
- A TLS handshake that fails leaves its socket to the garbage collector.
- In MQTT 3.1.1, refused because of its version, it calls `reconnect` by itself, inside a callback:
  `reconnect_on_failure=False` ends that.
- Which version it speaks is said when it is made: another version takes another client.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.link import sockets
from broker.link.link import QOS, Will
from broker.link.network_loop import NetworkLoop
from broker.link.settings import BrokerSettings, Secrets
from broker.link.transport_settings import proxy_arguments
from broker.link.websocket import WebSocket

#: Room for topic, packet id and properties around the largest payload.
HEADER_ROOM = 1024
#: Packets read in one go from TLS's buffer before other connections get their turn.
_READS_IN_A_ROW = 50


_Socket = socket.socket | WebSocket


@dataclass(frozen=True)
class Session:
    """How a client presents itself.

    Attributes:
        client_id: stable, so that the broker finds the session again.
        will: what the broker says when we vanish.
        expiry_s: how long the broker keeps the session while we are away.
        receive_maximum: messages that the broker may send ahead of our acknowledgements.
    """

    client_id: str
    will: Will | None
    expiry_s: int
    receive_maximum: int


class Handler(Protocol):
    """What happens on the connection. Called inside paho's callbacks, but for `broken`."""

    def connected(self, present: bool, code: ReasonCode, properties: Properties) -> None:
        """CONNACK; the session was present or not."""

    def disconnected(self, by_broker: bool, code: ReasonCode) -> None:
        """The connection ended; may come twice."""

    def subscribed(self, mid: int, codes: list[ReasonCode]) -> None:
        """SUBACK."""

    def acknowledged(self, mid: int, code: ReasonCode) -> None:
        """PUBACK."""

    def received(self, message: paho.MQTTMessage) -> None:
        """PUBLISH; paho does not acknowledge it."""

    def broken(self) -> None:
        """Reading or writing raised; the connection is to be dropped."""


@functools.lru_cache(maxsize=64)  # paho builds its table of all properties for each object
def make_properties(packet_type: int, **values: int) -> Properties:
    """Properties of a packet, by the names that paho gives them; shared, not to be changed."""
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


class Driver:
    """A paho client whose socket is served by the network thread.

    Attributes:
        client: to subscribe, publish and acknowledge; not to connect or disconnect. Another one
            after `speak`.
        mqtt5: whether it speaks MQTT 5, not 3.1.1.
        complaint: what TLS said when the last connection ended, if anything.
        farewell: what the WebSocket said then.
    """

    complaint: ssl.SSLError | None = None
    farewell = ""

    def __init__(
        self,
        settings: BrokerSettings,
        session: Session,
        network: NetworkLoop,
        handler: Handler,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._settings = settings
        self._session = session
        self._network = network
        self._handler = handler
        self._connecting = False  # a connector thread has the client
        self._writing = False  # the socket was full: epoll says when it is not
        self._held = False  # the owner has enough: what comes waits in the socket
        self._timer: asyncio.TimerHandle | None = None
        self._tls = tls
        self.mqtt5 = settings.protocol != "3.1.1"
        self.client = self._make_client()

    def speak(self, *, mqtt5: bool) -> None:
        """Takes a client of that version of MQTT; only while there is no connection."""
        if mqtt5 != self.mqtt5:
            self.mqtt5 = mqtt5
            self.client = self._make_client()

    def _make_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._session.client_id,
            protocol=paho.MQTTv5 if self.mqtt5 else paho.MQTTv311,
            # MQTT 3.1.1 knows sessions that end with the connection and sessions that do not.
            clean_session=None if self.mqtt5 else self._session.expiry_s == 0,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True  # `_guarded` has logged and counted them
        client.connect_timeout = self._settings.connect_timeout_s
        client.max_inflight_messages_set(0)  # no limit: the connection's own window is the limit
        self._websockets = sockets.install(client, self._settings, self._tls)
        if will := self._session.will:
            delay = {"WillDelayInterval": will.delay_s}
            properties = make_properties(PacketTypes.WILLMESSAGE, **delay) if self.mqtt5 else None
            client.will_set(will.topic, will.payload, QOS, retain=True, properties=properties)
        self._set_callbacks(client)
        return client

    def _set_callbacks(self, client: paho.Client) -> None:
        handler = self._handler
        guarded = self._guarded
        client.on_socket_open = guarded(self._on_socket_open)
        client.on_socket_close = guarded(self._on_socket_close)
        client.on_socket_register_write = guarded(self._on_register_write)
        client.on_socket_unregister_write = guarded(self._on_unregister_write)
        client.on_connect = guarded(
            lambda _client, _data, flags, code, properties: handler.connected(
                flags.session_present, code, properties
            )
        )
        client.on_disconnect = guarded(
            lambda _client, _data, flags, code, _properties: handler.disconnected(
                flags.is_disconnect_packet_from_server, code
            )
        )
        client.on_subscribe = guarded(
            lambda _client, _data, mid, codes, _properties: handler.subscribed(mid, codes)
        )
        client.on_publish = guarded(
            lambda _client, _data, mid, code, _properties: handler.acknowledged(mid, code)
        )
        client.on_message = guarded(lambda _client, _data, message: handler.received(message))

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception:  # noqa: BLE001 - one bad packet must not end everyone's network
                self._network.count_error("error while handling a packet")

        return guarded

    # --- connecting and disconnecting ------------------------------------------------------------

    def connect(self, secrets: Secrets, done: Callable[[BaseException | None], None]) -> None:
        """Opens the socket in a connector thread and sends CONNECT; then calls `done(error)`."""
        self.client.username_pw_set(self._settings.username or None, secrets.password)
        if self._websockets is not None:
            self._websockets.headers = secrets.headers
        if secrets.proxy is not None:
            self.client.proxy_set(**proxy_arguments(secrets.proxy))
        self.drop()  # there is no socket: arms the client
        self._connecting = True
        self._held = False

        def opened(error: BaseException | None) -> None:
            self._connecting = False
            done(error)  # first: writing may already find the connection closed
            sock = self._socket()
            if sock is not None:
                self._network.add_reader(sock, self._read)
                self._keep_time()
                self._write()

        self._network.in_background(self.client.reconnect, opened)

    def drop(self) -> None:
        """Closes the socket without a DISCONNECT. Not to be called inside a paho callback."""
        self._stop_timer()
        limits = {
            "SessionExpiryInterval": self._session.expiry_s,
            "ReceiveMaximum": self._session.receive_maximum,
            "MaximumPacketSize": self._settings.max_payload_bytes + HEADER_ROOM,
        }
        properties = make_properties(PacketTypes.CONNECT, **limits) if self.mqtt5 else None
        self.client.connect_async(
            self._settings.host,
            self._settings.port,
            self._settings.keepalive_s,
            clean_start=False,
            properties=properties,
        )

    def goodbye(self) -> None:
        """Sends DISCONNECT; `disconnected` is called when it is out."""
        self.client.disconnect()

    def hold(self) -> None:
        """Reads no more, so that the broker must wait."""
        self._held = True
        if (sock := self._socket()) is not None:
            self._network.remove_reader(sock)

    def go_on(self) -> None:
        """Reads again."""
        if not self._held:
            return
        self._held = False
        if (sock := self._socket()) is not None and not self._connecting:
            self._network.add_reader(sock, self._read)
            self._network.soon(self._read)  # bytes that epoll knows nothing of

    def _socket(self) -> socket.socket | WebSocket | None:
        return cast("_Socket | None", self.client.socket())

    # --- the socket ------------------------------------------------------------------------------

    def _on_socket_open(self, client: paho.Client, data: object, sock: _Socket) -> None:
        self.complaint, self.farewell = None, ""
        # In a connector thread. Small requests and answers wait 40 ms for each other without it.
        sockets.tcp_of(sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_socket_close(self, client: paho.Client, data: object, sock: _Socket) -> None:
        self._stop_timer()
        self.complaint = sockets.complaint_of(sock)
        self.farewell = sock.farewell if isinstance(sock, WebSocket) else ""
        self._network.remove_reader(sock)
        self._on_unregister_write(client, data, sock)

    def _on_register_write(self, client: paho.Client, data: object, sock: _Socket) -> None:
        # In a connector thread while connecting: `opened` writes then. Otherwise write soon,
        # together with whatever else this turn queues: mostly the socket takes it all, and
        # epoll need not be told.
        if not self._connecting:
            self._network.soon(self._write)

    def _on_unregister_write(self, client: paho.Client, data: object, sock: _Socket) -> None:
        if self._writing:
            self._network.remove_writer(sock)
            self._writing = False

    def _write(self) -> None:
        if self._connecting:
            return
        try:
            self.client.loop_write()
            sock = self._socket()
            if sock is not None and self.client.want_write() and not self._writing:
                self._network.add_writer(sock, self._write)
                self._writing = True
        except Exception:  # noqa: BLE001 - ends this connection, not the loop
            self._network.count_error("error while sending")
            self._handler.broken()

    def _read(self) -> None:
        if self._connecting or self._held:
            return
        try:
            for _ in range(_READS_IN_A_ROW):
                self.client.loop_read()
                # The layers may hold whole packets that epoll knows nothing of.
                if self._held or not sockets.has_more(self._socket()):
                    return
            self._network.soon(self._read)
        except Exception:  # noqa: BLE001 - ends this connection, not the loop
            self._network.count_error("error while reading")
            self._handler.broken()

    # --- keep-alive ------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        """Lets paho ping, every few seconds, and notice in time that nobody answers."""
        self.client.loop_misc()
        self._stop_timer()
        if self._socket() is not None:
            interval_s = min(5.0, self._settings.keepalive_s / 6)
            self._timer = self._network.later(interval_s, self._keep_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""The broker of a run: one that is started here, or one that runs already."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from broker.link.link import LinkDown, LinkUp
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings
from broker.local.broker import LocalBroker
from fedge.errors import ConfigError, LinkError
from fedge.yaml_config import load_config


@contextlib.contextmanager
def chosen_broker(choice: str) -> Iterator[tuple[BrokerSettings, str]]:
    """Yields the broker's settings and its kind: mosquitto, embedded or external.

    Args:
        choice: see `fleet.runs.run.RunOptions`; a broker of this machine runs meanwhile.

    Raises:
        ConfigError: the choice is no broker.
        LinkError: the external broker cannot be reached.
    """
    if choice in ("auto", "mosquitto", "embedded"):
        with LocalBroker(choice) as broker:  # type: ignore[arg-type]  # narrowed by the line above
            yield broker.settings, broker.kind
        return
    settings = _external(choice)
    _check_reachable(settings)
    yield settings, "external"


def _external(choice: str) -> BrokerSettings:
    path = Path(choice)
    if path.suffix not in (".yaml", ".yml"):
        return parse_address(choice)
    return load_config(path, BrokerSettings).located(path.absolute().parent)


def parse_address(address: str) -> BrokerSettings:
    """Returns the settings for `mqtt://host:port`.

    Raises:
        ConfigError: the address has another form.
    """
    parts = urlsplit(address)
    try:
        port = parts.port or 1883
    except ValueError as error:
        raise ConfigError(f"--broker {address!r}: {error}") from error
    if parts.scheme != "mqtt" or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(
            f"--broker {address!r}: use auto, mosquitto, embedded, mqtt://host:port or FILE.yaml"
        )
    return BrokerSettings(host=parts.hostname, port=port)


def _check_reachable(settings: BrokerSettings) -> None:
    link = MqttLink(settings, client_id=f"fedge-check-{secrets.token_hex(4)}", session_expiry_s=0)
    try:
        link.open()
        match link.poll(settings.connect_timeout_s + 1):
            case LinkUp():
                return
            case LinkDown(reason):
                raise LinkError(reason)
            case _:
                raise LinkError(f"broker {settings.address} does not answer")
    finally:
        link.close()

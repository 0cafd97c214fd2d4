"""A running fleet for the tests that attack it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from tests.conftest import need
from tests.integration.fleet_folder import (
    Client,
    RunningFleet,
    brokers,
    context_as,
    make_fleet,
    plugin_of,
    running,
    update,
)

Connect = Callable[..., Client]


@pytest.fixture
def network() -> Iterator[NetworkLoop]:
    """A network thread in which nothing went wrong."""
    with NetworkLoop() as loop:
        yield loop
    assert loop.errors == 0


@pytest.fixture
def links(request: pytest.FixtureRequest) -> Iterator[list[MqttLink]]:
    """Links that the test made: closed at its end, before the loop they may share."""
    if "network" in request.fixturenames:
        request.getfixturevalue("network")
    made: list[MqttLink] = []
    yield made
    for link in made:
        link.abort()


@pytest.fixture(scope="module", params=brokers() or [Path("none")], ids=lambda p: p.parent.name)
def program(request: pytest.FixtureRequest) -> Path:
    """A Mosquitto; each test is run with every one there is."""
    need("mosquitto")
    path: Path = request.param
    return path


@pytest.fixture(scope="module", params=["plugin", "file"])
def plugin(program: Path, request: pytest.FixtureRequest) -> str:
    """The way in which a fleet's broker learns its rules: path of the plugin, or empty."""
    if request.param == "file":
        return ""
    found = plugin_of(program)
    if not found:
        pytest.skip("this Mosquitto has no dynamic security plugin")
    return found


@pytest.fixture(scope="module")
def place(
    program: Path, plugin: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFleet]:
    """A running fleet of alice, who is honest, and mallory, who is not."""
    folder = tmp_path_factory.mktemp("fleet")
    fleet = make_fleet(folder / "fleet", plugin=plugin)
    with running(fleet, folder, program) as place:
        for name in ("alice", "mallory"):
            place.device(name)
        update(place)
        yield place


@pytest.fixture(autouse=True)
def tell_of_this_test_only(request: pytest.FixtureRequest) -> None:
    """What the log said of the tests before proves nothing for this one."""
    if "place" in request.fixturenames:
        place: RunningFleet = request.getfixturevalue("place")
        place.begins = len(place.said())


@pytest.fixture
def connect(place: RunningFleet) -> Iterator[Connect]:
    """Connects as someone of the fleet; everyone is sent home at the end of the test."""
    with ExitStack() as stack:

        def as_someone(name: str, client_id: str = "") -> Client:
            client = Client(place.port, context_as(place, name), client_id or name).connect()
            stack.callback(client.close)
            return client

        yield as_someone

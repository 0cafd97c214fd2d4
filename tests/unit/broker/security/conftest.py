"""Fleets of these tests name brokers that nobody may try to reach."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def without_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fedge broker init` makes an access-control file: commands then open no connection."""
    monkeypatch.setattr("broker.security.mosquitto.config.find_plugin", lambda: "")

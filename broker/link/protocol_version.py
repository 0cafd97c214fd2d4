"""Which version of MQTT to speak with a broker: 5, or 3.1.1 with one that knows no other."""

from __future__ import annotations

from typing import Literal


class VersionChoice:
    """Chooses the version of each attempt.

    A broker that does not know MQTT 5 has to say so (MQTT 3.1.1 §3.1.2.2); some just hang up. One
    that said so is asked for 3.1.1 from then on. After a silent one 3.1.1 is tried once: it may
    have hung up for any reason, and with 3.1.1 for good we would lose what MQTT 5 has.

    Args:
        wanted: as in the configuration.
    """

    def __init__(self, wanted: Literal["auto", "5", "3.1.1", 5]) -> None:
        self._auto = wanted == "auto"
        self._usual_is_5 = wanted != "3.1.1"
        self._trial = False

    def take(self) -> bool:
        """Whether the next attempt speaks MQTT 5."""
        trial, self._trial = self._trial, False
        return self._usual_is_5 and not trial

    def unknown(self, *, mqtt5: bool) -> bool:
        """The broker said that it does not know the version; whether to try the other at once."""
        if self._auto:
            self._usual_is_5 = not mqtt5
        return self._auto and mqtt5

    def silent(self, *, mqtt5: bool) -> bool:
        """The broker hung up on our greeting; whether to try the other version at once."""
        if self._auto:
            self._trial = mqtt5
            self._usual_is_5 = True
        return self._auto and mqtt5

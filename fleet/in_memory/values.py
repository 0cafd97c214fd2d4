"""Arguments of a person at work with numpy, as plain numbers, and checks of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedge.errors import ConfigError


def plain(value: Any) -> Any:
    """Returns a value with Python's own numbers in place of numpy's, nested ones too.

    Settings are checked by their type, and `np.int64(2)` is no `int`.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def whole(value: Any, key: str, least: int) -> int:
    """Returns a whole number.

    Raises:
        ConfigError: it is none, or below `least`; begins with `key`.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise ConfigError(f"{key} is {found!r}: give a whole number, {least} or more")
    return found

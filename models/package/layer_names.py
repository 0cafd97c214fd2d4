"""Names of Keras layers that are the same for every export of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

_NUMBERED = re.compile(r"_\d+$")
#: Prefix that Bidirectional gives to the names of its two layers.
_DIRECTION = re.compile(r"^(forward|backward)_")


def stable_names(layers: Iterable[tuple[str, str]]) -> list[str]:
    """Returns the layers' names in layouts, without the numbers that Keras gives.

    Keras numbers unnamed layers consecutively in a process (`dense_7`): with such a number the
    layout, and its fingerprint, would differ from one export to the next.

    Args:
        layers: name and class name of each layer, in the order of the model.
    """
    found: list[str] = []
    for name, class_name in layers:
        kind = _NUMBERED.sub("", name)
        plain = _DIRECTION.sub("", kind).replace("_", "")
        base = kind if plain == class_name.lower() else name
        found.append(free_name(base, set(found)))
    return found


def free_name(base: str, taken: Set[str]) -> str:
    """Returns `base`, with a number if it is taken."""
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name

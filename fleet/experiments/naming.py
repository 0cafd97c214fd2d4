"""Names of cases and their folders, from the settings that set them apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: A folder's name may have 255 bytes on most file systems, and stands below others.
_LONGEST = 100
#: Anything else would have to be quoted in a shell.
_NO_NAME = re.compile(r"[^\w.+=,-]+", re.ASCII)


def value_text(value: Any) -> str:
    """Returns a setting's value in few words: `fedprox-mu=0.1` for a choice with settings."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        inner = [f"{k}={value_text(v)}" for k, v in value.items() if k != "name"]
        return "-".join(([str(value["name"])] if "name" in value else []) + inner)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(value_text, value))
    return str(value)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Returns the shortest end of each dotted key that no other key shares."""
    parts = {key: key.split(".") for key in keys}
    found = {}
    for key, own in parts.items():
        for length in range(1, len(own) + 1):
            end = own[-length:]
            if sum(other[-length:] == end for other in parts.values()) == 1:
                break
        found[key] = ".".join(end)
    return found


def case_name(settings: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Returns the name of a case, usable as a folder: `alpha=0.1,algorithm=fedavg`.

    Args:
        settings: that set it apart, by dotted key.
        short: name of each key.
    """
    text = ",".join(f"{short[key]}={value_text(value)}" for key, value in settings.items())
    return folder_name(text or "all")


def folder_name(text: str) -> str:
    """Returns a text as the name of one folder; a long one is cut, with a digest behind it."""
    name = _NO_NAME.sub("_", text).lstrip(".") or "_"
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST - 9]}-{digest}"

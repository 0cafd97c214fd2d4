"""Settings: changes to a scenario by dotted key, as `--set key=value` and grids make them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import msgspec

from coordinator.config import CoordinatorConfig
from fedge.errors import ConfigError, did_you_mean
from fedge.yaml_config import as_yaml, parse_value
from learning.registry import Choice

_FEDERATION = "federation"
#: Longest value that a message repeats.
_SHOWN = 60
#: Keys that a message proposes.
_NAMED = 3
_PART = re.compile(r"[^.\[\]]+|\[(\d+)\]")
_KEY = re.compile(r"[^\s:.\[\]]+(?:\[\d+\]|\.[^\s:.\[\]]+)*")
_Part = str | int


def parse_changes(items: Sequence[str]) -> dict[str, Any]:
    """Returns the changes that texts of the form `key=value` name, by key.

    Args:
        items: dotted key (`partition.alpha`), `=`, and a value in YAML. An item of a list has its
            index as key (`unseen.0` or `unseen[0]`). Of two with one key the later counts.

    Raises:
        ConfigError: an item has another form, or its value is not YAML.
    """
    changes: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(
                f"--set {item}: expected KEY=VALUE, as in federation.training.learning_rate=0.05"
            )
        changes[key] = parse_value(text, f"--set {item}")
    return changes


def full_keys(changes: Mapping[str, Any], scenario: type[msgspec.Struct]) -> dict[str, Any]:
    """Returns changes with keys from the top of a scenario.

    A key whose first part is no key of a scenario, but one of `federation`, is taken as
    `federation.KEY`.

    Args:
        changes: by dotted key.
        scenario: its keys.

    Raises:
        ConfigError: the first part is a key of neither, or two keys are spellings of one.
    """
    known, fields = _names(scenario), _names(CoordinatorConfig)
    found = {}
    spelled: dict[tuple[str, ...], str] = {}
    for key, value in changes.items():
        first = str(_parts(key)[0])
        if first not in known and first not in fields:
            below = [*_ending_in(key, CoordinatorConfig), *_ending_in(key, scenario)]
            near = f"did you mean {' or '.join(below[:_NAMED])}? " if below else ""
            near = near or did_you_mean(first, [*known, *fields])
            raise ConfigError(
                f"{option(key, value)}: {first}: unknown key; {near}known keys: "
                f"{', '.join(sorted(known))}; and those of federation"
            )
        full = key if first in known else f"{_FEDERATION}.{key}"
        other = spelled.setdefault(_steps(full), key)
        if other != key:
            raise ConfigError(f"{other} and {key} are one key: give one of them")
        found[full] = value
    return found


def _names(config: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(config)]


def _ending_in(key: str, config: type[msgspec.Struct], above: str = "") -> Iterator[str]:
    """Yields the keys of a configuration's sections that end in a key, as in `training.epochs`."""
    for field in msgspec.structs.fields(config):
        name = f"{above}{field.encode_name}"
        if above and field.encode_name == key:
            yield name
        for kind in (field.type, *get_args(field.type)):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                yield from _ending_in(key, kind, f"{name}.")


def overlap(outer: Iterable[str], inner: Iterable[str]) -> tuple[str, str] | None:
    """Returns a key of `outer` and one of `inner` that lies below it; None: none does.

    Args:
        outer: full keys.
        inner: full keys; may be the same.
    """
    whole = {_steps(key): key for key in outer}
    for key in inner:
        steps = _steps(key)
        for length in range(1, len(steps)):
            if steps[:length] in whole:
                return whole[steps[:length]], key
    return None


def in_both(first: Iterable[str], second: Iterable[str]) -> tuple[str, str] | None:
    """Returns two spellings of a key that is in both, of full keys; None: none is."""
    known = {_steps(key): key for key in first}
    return next(((known[_steps(key)], key) for key in second if _steps(key) in known), None)


def apply_changes(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a scenario's mapping with changes made; the one given is left as it is.

    A setting below a choice that is a plain name keeps the name: `federation.algorithm.mu=0.1`
    makes `{name: fedprox, mu: 0.1}` of `fedprox`. A key is changed before those below it, in
    whichever order they are given: neither change is lost.

    Args:
        document: parsed YAML of a scenario.
        changes: values by key, as `full_keys` returns them.

    Raises:
        ConfigError: a key leads into a value that has no keys, or behind the end of a list.
    """
    changed: Any = document
    for key, value in sorted(changes.items(), key=lambda change: len(_parts(change[0]))):
        try:
            changed = _with(changed, (), _parts(key), value)
        except ConfigError as error:
            raise ConfigError(f"{option(key, value)}: {error}") from error
    return dict(changed)


def blame(text: str, changes: Mapping[str, Any]) -> str | None:
    """Returns an error about a scenario with the changes that it is about in front.

    Args:
        text: the error, which begins with the dotted key that is wrong.
        changes: that were made, by full key.

    Returns:
        None: the error is about a key that no change touches.
    """
    where, rest = _split(text)
    wrong = _parts(where) if where else []
    # An error about a section as a whole may be about any key of it.
    nearness = {key: _common(_parts(key), wrong) for key in changes}
    nearest = max(nearness.values(), default=0)
    if not nearest:
        return None
    blamed = {key: changes[key] for key in changes if nearness[key] == nearest}
    is_named = len(blamed) == 1 and _parts(next(iter(blamed))) == wrong
    return f"{options(blamed)}: {rest if is_named else f'{where}: {rest}'}"


def options(changes: Mapping[str, Any]) -> str:
    """Returns changes as they are written on a command line; long values are cut."""
    return " ".join(option(key, value) for key, value in changes.items())


def option(key: str, value: Any) -> str:
    """Returns a change as it is written on a command line; a long value is cut."""
    text = f"{{{as_yaml(value)}}}" if isinstance(value, dict) else as_yaml(value)
    return f"--set {key}={text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}"


def _parts(key: str) -> list[_Part]:
    return [int(m[1]) if m[1] else m[0] for m in _PART.finditer(key)]


def _steps(key: str) -> tuple[str, ...]:
    """Returns the parts of a key, the same for every spelling of it."""
    return tuple(map(str, _parts(key)))


def _common(parts: Sequence[_Part], wrong: Sequence[_Part]) -> int:
    """Returns the length of the shorter key where the other one begins with it; else 0."""
    length = min(len(parts), len(wrong))
    return length if parts[:length] == wrong[:length] else 0


def _split(text: str) -> tuple[str, str]:
    """Returns the dotted key that an error begins with, and the rest."""
    where: list[str] = []
    while match := re.match(rf"({_KEY.pattern}): ", text):
        where.append(match[1])
        text = text[match.end() :]
        if match[1] != _FEDERATION or where[1:]:
            break
    return ".".join(where), text


def _with(value: Any, above: tuple[_Part, ...], parts: Sequence[_Part], new: Any) -> Any:
    """Returns `value`, which stands at the key `above`, with `new` at the key `parts` below it."""
    if not parts:
        return new
    first, rest = parts[0], parts[1:]
    here = (*above, first)
    if isinstance(value, list):
        return _with_item(value, here, rest, new)
    if value is None or isinstance(value, str):
        value = _begun(value, above)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{_dotted(above)} is {as_yaml(value)}, which has no keys")
    name = str(first)
    return {**value, name: _with(value.get(name), here, rest, new)}


def _with_item(value: list[Any], here: tuple[_Part, ...], rest: Sequence[_Part], new: Any) -> Any:
    index, where = str(here[-1]), _dotted(here[:-1])
    if not index.isdecimal() or int(index) >= len(value):
        raise ConfigError(
            f"{where} is a list of {len(value)}: expected an index below that, got {index!r}"
        )
    copy = list(value)
    copy[int(index)] = _with(copy[int(index)], here, rest, new)
    return copy


def _begun(value: str | None, above: tuple[_Part, ...]) -> Any:
    """Returns the mapping that a missing value or a choice's plain name stands for."""
    default = _default_choice(above)
    if default is None:
        return {} if value is None else value
    return {"name": default if value is None else value}


def _default_choice(above: tuple[_Part, ...]) -> str | None:
    """Returns the default of a key of `federation` that takes a name, or a name and settings."""
    if above[:1] != (_FEDERATION,) or len(above) != 2:
        return None
    for field in msgspec.structs.fields(CoordinatorConfig):
        if field.encode_name == above[1] and field.type == Choice:
            return str(field.default)
    return None


def _dotted(parts: Sequence[_Part]) -> str:
    return ".".join(map(str, parts))

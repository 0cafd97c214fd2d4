"""Registry: the members of a kind (algorithms, codecs ...) by name.

A member is a class with `settings_type`, a struct tagged with its name; the class is called
with such settings. Members of other installed packages are found by their entry points, in the
groups `fedge.algorithms`, `fedge.codecs`, `fedge.aggregators` and `fedge.phases`, and loaded only
when no member here has the name.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from fedge.errors import ConfigError, did_you_mean, one_line
from fedge.plugins import all_or_nothing, note_registration
from fedge.yaml_config import parse_config

log = logging.getLogger(__name__)


class Settings(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="name",
):
    """Base of all settings; a subclass passes its member's name as `tag`."""

    @property
    def name(self) -> str:
        """The member's name."""
        return str(self.__struct_config__.tag)


#: As written in a configuration or a plan: a member's name, or its name and settings.
Choice = str | dict[str, Any]


class Member(Protocol):
    """A class whose settings say its name."""

    settings_type: ClassVar[type[Settings]]


M = TypeVar("M")


class Registry(Generic[M]):
    """Members of one kind by name.

    Args:
        kind: in messages, and in the entry points' group.
        members: classes known from the start.
    """

    def __init__(self, kind: str, *members: type[Member]) -> None:
        self.kind = kind
        self._members: dict[str, type[Member]] = {}
        for member in members:
            self.add(member)

    def add(self, member: type[Member]) -> type[Member]:
        """Adds a member; usable as a decorator in a plug-in's file.

        Raises:
            ConfigError: another member has the name.
        """
        name = str(member.settings_type.__struct_config__.tag)
        known = self._members.get(name, member)
        if _path(known) != _path(member):
            raise ConfigError(
                f"{self.kind} {name!r} is defined by {_path(known)} and by {_path(member)}"
            )
        before = self._members.get(name)
        self._members[name] = member  # a plug-in's file may be loaded again
        note_registration(lambda: self._take_back(name, before))
        return member

    def _take_back(self, name: str, before: type[Member] | None) -> None:
        if before is None:
            del self._members[name]
        else:
            self._members[name] = before

    @property
    def group(self) -> str:
        """The group of entry points in which other packages name members: `fedge.<kind>s`."""
        return f"fedge.{self.kind}s"

    def names(self) -> list[str]:
        """Names of all members, those of installed packages included, which are not loaded."""
        return list(dict.fromkeys([*self._members, *_installed(self.group, tuple(sys.path))]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a member; one of an installed package is not loaded for it."""
        return isinstance(name, str) and (
            name in self._members or name in _installed(self.group, tuple(sys.path))
        )

    def __getitem__(self, name: str) -> type[Member]:
        """The member of this name.

        Raises:
            ConfigError: there is none, or an installed package's cannot be loaded.
        """
        member = self._find(name)
        if member is None:
            known = self.names()
            raise ConfigError(
                f"unknown {self.kind.replace('_', ' ')} {name!r}; {did_you_mean(name, known)}"
                f"known: {', '.join(known)}"
            )
        return member

    def settings(self, choice: Choice | Settings, *, key: str = "") -> Settings:
        """The settings that a configuration or a plan names.

        Args:
            choice: a name, a mapping with `name` and settings, or settings already decoded.
            key: where it stands in a configuration, for messages.

        Raises:
            ConfigError: no such member, or a setting is unknown, of the wrong type or out of range,
                or its settings raise.
        """
        if isinstance(choice, Settings):
            return choice
        where = key or self.kind
        given: Mapping[str, Any] = {"name": choice} if isinstance(choice, str) else choice
        name = given.get("name")
        if not isinstance(name, str):
            raise ConfigError(
                f"{where}.name: required key is missing; known: {', '.join(self.names())}"
            )
        try:
            struct = self[name].settings_type
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        with _in_one_line(f"{where} {name!r}"):
            return decode_settings(given, struct, where)

    def make(self, choice: Choice | Settings, *arguments: Any, **named: Any) -> M:
        """A member with its settings; further arguments are the kind's own.

        Raises:
            ConfigError: as `settings`, or the member refuses them or raises.
        """
        settings = self.settings(choice)
        member: Any = self[settings.name]
        with _in_one_line(f"{self.kind} {settings.name!r}"):
            made: M = member(settings, *arguments, **named)
        return made

    def _find(self, name: str) -> type[Member] | None:
        if name not in self._members:
            self._load_entry_point(name)
        return self._members.get(name)

    def _load_entry_point(self, name: str) -> None:
        value = _installed(self.group, tuple(sys.path)).get(name)
        if value is None:
            return
        from importlib import metadata

        point = metadata.EntryPoint(name, value, self.group)
        where = f"{self.kind} {name!r}: entry point {value}"
        try:
            with all_or_nothing():
                member = point.load()
                found = str(member.settings_type.__struct_config__.tag)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            kind = "" if isinstance(error, Exception) else f"{type(error).__name__}: "
            raise ConfigError(f"{where} cannot be loaded: {kind}{one_line(error)}") from error
        if found != name:
            raise ConfigError(f"{where} is {found!r} by its settings' tag: use one name for both")
        self.add(member)


@lru_cache(maxsize=16)
def _installed(group: str, paths: tuple[str, ...]) -> Mapping[str, str]:
    """Objects that the entry points of a group name, by name."""
    found: dict[str, str] = {}
    for group_of, name, value in _entry_points(paths):
        if group_of == group:
            found.setdefault(name, value)  # the path's first, as an import takes it
    return found


@lru_cache(maxsize=4)
def _entry_points(paths: tuple[str, ...]) -> Sequence[tuple[str, str, str]]:
    """Group, name and value of all entry points of the packages that name members.

    Few do, and importlib.metadata costs every agent 1 MB and 20 ms: this look costs 2 ms.
    """
    found = []
    for path in paths:
        for file in sorted(Path(path).glob("*-info/entry_points.txt")):
            try:
                if b"[fedge." in _content(file):
                    found += _entry_points_of(file.parent)
            except Exception as error:  # noqa: BLE001  of somebody else's package
                log.warning("%s is ignored: %s", file, one_line(error))
    return found


def _content(file: Path) -> bytes:
    if not file.is_file():
        raise OSError("not a file")
    return file.read_bytes()


def _entry_points_of(folder: Path) -> list[tuple[str, str, str]]:
    from importlib import metadata

    points = metadata.Distribution.at(folder).entry_points
    return [(point.group, point.name, point.value) for point in points]


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Makes a ConfigError of whatever a member raises, as a plug-in's may."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(f"{what}: {type(error).__name__}: {one_line(error)}") from error


def _path(member: type[Member]) -> str:
    return f"{member.__module__}.{member.__qualname__}"


T = TypeVar("T")


def decode_settings(given: Mapping[str, Any], struct: type[T], where: str) -> T:
    """Settings of one struct from a mapping that came from a file or a plan.

    Raises:
        ConfigError: a key is unknown, or a value of the wrong type or out of range.
    """
    return parse_config(given, struct, "", key=where)


def choice_of(settings: Settings) -> Choice:
    """Settings as they travel: the name alone where all others are defaults."""
    given: dict[str, Any] = msgspec.to_builtins(settings)
    return settings.name if set(given) == {"name"} else given

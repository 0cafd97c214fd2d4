"""Loader of configuration files: YAML to a frozen msgspec Struct.

A configuration type is a `msgspec.Struct` with `frozen=True, forbid_unknown_fields=True,
kw_only=True`; its `__post_init__` checks relations between keys and raises ValueError. Every error
becomes a `ConfigError` with one line that begins with `file: dotted.key:`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec
import yaml

from fedge.errors import ConfigError, did_you_mean

#: Configurations are written by hand: a larger file is something else.
MAX_CONFIG_BYTES = 1 << 20
#: Limit of values with aliases expanded: nested aliases can double them with every line.
MAX_CONFIG_VALUES = 100_000
#: Limit of nested keys: deeper nesting is not a configuration and would end in RecursionError.
MAX_CONFIG_DEPTH = 50

T = TypeVar("T")
_Key = str | int
_Path = tuple[_Key, ...]

_SECRET = re.compile(r"password|secret|token|headers", re.IGNORECASE)


def load_config(path: Path, config_type: type[T]) -> T:
    """Loads a configuration from the file `path`.

    Args:
        path: a YAML file of at most 1 MiB.
        config_type: a msgspec Struct (see the module's docstring). Fields may be of type `Path`;
            they are kept as written, see `located`.

    Raises:
        ConfigError: no such file, not YAML, a key that is duplicate, unknown, missing or of a
            wrong type, or a relation between keys that `__post_init__` refuses.
    """
    return _convert(load_yaml(path), config_type, str(path), "")


def load_yaml(path: Path) -> Any:
    """Returns the value in a YAML file, with the limits of `load_config`.

    Raises:
        ConfigError: no such file, not YAML, empty, or a duplicate key.
    """
    return _parse_yaml(_read(path), str(path))


def parse_value(text: str, origin: str) -> Any:
    """Returns the value of a text in YAML, as a command line gives one; None for an empty text.

    Raises:
        ConfigError: not YAML, or a duplicate key; begins with `origin`.
    """
    return _parsed(text.encode(), origin)


def parse_config(
    mapping: Mapping[str, Any], config_type: type[T], origin: str, *, key: str = ""
) -> T:
    """Converts `mapping` to a configuration, for files that embed other configurations.

    Args:
        mapping: parsed YAML or JSON: dicts, lists, numbers, text.
        config_type: as for `load_config`.
        origin: name of the file, for messages; may be empty.
        key: position of the mapping in the file, as a dotted key ("agents[0].data").

    Raises:
        ConfigError: as for `load_config`.
    """
    return _convert(mapping, config_type, origin, key)


def located(path: str | Path, base: Path) -> Path:
    """Resolves a path of a configuration file in the folder `base`; `~` is the home folder.

    Removes `..`, because messages show the path.
    """
    found = base / Path(path).expanduser()
    return found.resolve() if ".." in found.parts else found


def as_yaml(value: Any) -> str:
    """Returns a value as YAML in one line; a mapping without the braces around it.

    It may stand inside `[ ]` and `{ }`: texts are quoted where they must be.
    """
    text: str = yaml.safe_dump(
        [value], default_flow_style=True, width=1 << 30, allow_unicode=True, sort_keys=False
    )
    text = text.strip()[1:-1]
    return text[1:-1] if isinstance(value, dict) else text


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        folder = path.parent
        hint = "check the path" if folder.is_dir() else f"there is no folder {folder} either"
        raise ConfigError(f"{path}: no such file; {hint}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, the limit of a config")
    return data


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loader that reads 1e-5 as a number."""


# YAML 1.1 reads 1e-5 and 1.0e5 as text, since it requires a dot and a sign.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def _parse_yaml(data: bytes, origin: str) -> Any:
    value = _parsed(data, origin)
    if value is None:
        raise ConfigError(f"{origin}: the file is empty")
    return value


def _parsed(data: bytes, origin: str) -> Any:
    try:
        _check_depth(data, origin)
        loader = _Loader(data)
        try:
            node = loader.get_single_node()
            _check_nodes(node, origin)
            return loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        if "nesting" in str(error.problem):  # libyaml's own limit
            raise _too_deep(origin) from error
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{origin}: {line}not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: line {_bad_line(data)}: not YAML: not UTF-8 text") from error
    except (RecursionError, ValueError, OverflowError) as error:
        # ValueError: an invalid date (2024-13-40).
        raise ConfigError(f"{origin}: not usable YAML: {error}") from error


def _check_depth(data: bytes, origin: str) -> None:
    """Refuses deep nesting before nodes are built: libyaml crashes at about 50,000 levels."""
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_CONFIG_DEPTH:
            raise _too_deep(origin)


def _too_deep(origin: str) -> ConfigError:
    return ConfigError(f"{origin}: nested more than {MAX_CONFIG_DEPTH} keys deep")


def _bad_line(data: bytes) -> int:
    """Returns the first line that is not UTF-8 or has a control character (counted from 1)."""
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return number
        if any(not (char.isprintable() or char in "\t\r\ufeff\x85") for char in text):
            return number
    return 1


def _check_nodes(root: yaml.Node | None, origin: str) -> None:
    """Refuses duplicate keys (the loader would silently use the last) and alias bombs."""
    pending: list[tuple[yaml.Node, _Path]] = [(root, ())] if root is not None else []
    visited = 0
    while pending:
        node, path = pending.pop()
        visited += 1
        if visited > MAX_CONFIG_VALUES:
            raise ConfigError(
                f"{origin}: more than {MAX_CONFIG_VALUES} values (aliases count expanded)"
            )
        if len(path) > MAX_CONFIG_DEPTH:  # an alias inside itself
            raise _too_deep(origin)
        if isinstance(node, yaml.SequenceNode):
            pending += [(item, (*path, index)) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            _check_duplicates(node, path, origin)
            pending += [(value, (*path, str(key.value))) for key, value in node.value]


def _check_duplicates(node: yaml.MappingNode, path: _Path, origin: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        name = str(key.value)
        if name in lines:
            where = _dotted((*path, name), "")
            raise ConfigError(
                f"{origin}: {where}: duplicate key, on lines {lines[name]} and {line}; keep one"
            )
        lines[name] = line


class _Failure(NamedTuple):
    """Failed conversion: its place and the value there."""

    path: _Path
    text: str  # message of msgspec or of a __post_init__
    value: Any
    hint: Any
    own_words: bool  # the message is that of a __post_init__


def _convert(value: Any, config_type: type[T], origin: str, key: str) -> T:
    try:
        return msgspec.convert(value, config_type, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        path, text = _describe(_locate(value, config_type, error))
        where = _dotted(path, key)
        raise ConfigError(": ".join(filter(None, (origin, where, text)))) from error


def _decode_path(hint: type[Any], value: Any) -> Any:
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("expected a path as text")


_ERROR = re.compile(r"(?s)(?P<text>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")


def _locate(value: Any, hint: Any, error: msgspec.ValidationError) -> _Failure:
    """Follows msgspec's path into `value`; finds the key that `[...]` stands for in a dict."""
    match = _ERROR.fullmatch(str(error))
    assert match is not None, "every text matches"
    path: _Path = ()
    for name, index, any_key in _STEP.findall(match["path"] or ""):
        hint = _narrow(hint, value)
        if any_key:
            return _locate_in_dict(value, hint, path, error)
        key: _Key = name or int(index)
        hint, value, path = _item_hint(hint, key), value[key], (*path, key)
    own_words = isinstance(error.__cause__, ValueError | TypeError)
    text = str(error.__cause__) if own_words else match["text"]
    if match["key"] and not own_words:  # YAML reads 3, no and 2024-01-01 as other types
        odd = next((key for key in value if not isinstance(key, str)), None)
        return _Failure(path, f"the key {odd!r} must be text; quote it", value, hint, True)
    return _Failure(path, text, value, _narrow(hint, value), own_words)


def _locate_in_dict(
    value: Mapping[str, Any], hint: Any, path: _Path, error: msgspec.ValidationError
) -> _Failure:
    item_hint = (*get_args(hint), Any, Any)[1]
    for key, item in value.items() if isinstance(value, Mapping) else ():
        try:
            msgspec.convert(item, item_hint, dec_hook=_decode_path)
        except msgspec.ValidationError as inner:
            failure = _locate(item, item_hint, inner)
            return failure._replace(path=(*path, key, *failure.path))
    return _Failure(path, str(error), value, hint, own_words=True)


def _members(hint: Any) -> list[Any]:
    """Returns the alternatives of a union without Annotated; a single one for other types."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [member for arg in get_args(hint) for member in _members(arg)]
    return [hint]


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def _narrow(hint: Any, value: Any) -> Any:
    """Returns the alternative of a union that fits `value`; the union if several do."""
    members = _members(hint)
    if len(members) == 1:
        return members[0]
    if isinstance(value, Mapping):
        structs = [member for member in members if _is_struct(member)]
        chosen = [s for s in structs if value.get(_tag_key(s), _tag(s)) == _tag(s)]
        dicts = [m for m in members if get_origin(m) in (dict, Mapping)]
        candidates = chosen if len(chosen) == 1 else [] if structs else dicts
    else:
        kinds = (list, tuple, set, frozenset) if isinstance(value, list) else ()
        candidates = [m for m in members if (get_origin(m) or m) in kinds]
    return candidates[0] if len(candidates) == 1 else hint


def _tag_key(struct: Any) -> str | None:
    key: str | None = struct.__struct_config__.tag_field
    return key


def _tag(struct: Any) -> Any:
    return struct.__struct_config__.tag


def _item_hint(hint: Any, key: _Key) -> Any:
    tags = [_tag(s) for s in _members(hint) if _is_struct(s) and _tag_key(s) == key]
    if tags:
        return Literal[tuple(tags)]
    if _is_struct(hint):
        by_name = {field.encode_name: field.type for field in msgspec.structs.fields(hint)}
        return by_name.get(str(key), Any)
    arguments = get_args(hint)
    if get_origin(hint) is tuple and arguments[-1:] != (Ellipsis,):
        return arguments[int(key)]
    return arguments[0] if arguments else Any


_EXPECTED = re.compile(r"Expected (?P<what>.*?)(?:, got `[^`]*`)?")
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`")
_WORDS = {
    "object": "a mapping of keys",
    "array": "a list",
    "null": "null",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}


def _describe(failure: _Failure) -> tuple[_Path, str]:
    """Returns the path of the error and a line that describes it."""
    path, text = failure.path, failure.text
    if failure.own_words:
        return path, " ".join(text.split())
    if match := _MISSING.fullmatch(text):
        choices = _choices(_item_hint(failure.hint, match["key"]))
        return (*path, match["key"]), "; ".join(filter(None, ["required key is missing", choices]))
    if match := _UNKNOWN.fullmatch(text):
        return (*path, match["key"]), _unknown_key(match["key"], _known_keys(failure.hint))
    if match := _EXPECTED.fullmatch(text):
        what = re.sub(r"`([^`]*)`", lambda m: _in_words(m[1]), match["what"])
        return path, f"expected {what}, got {_shown(failure)}{_quoting_hint(failure, what)}"
    if choices := _choices(failure.hint):
        return path, f"expected {choices}, got {_shown(failure)}"
    return path, f"{text}, got {_shown(failure)}"


def _in_words(names: str) -> str:
    return " or ".join(_WORDS.get(name.strip(), name.strip()) for name in names.split("|"))


def _unknown_key(key: str, known: Sequence[str]) -> str:
    return f"unknown key; {did_you_mean(key, known)}known keys: {', '.join(known) or 'none'}"


def _known_keys(hint: Any) -> list[str]:
    keys: set[str] = set()
    for struct in filter(_is_struct, _members(hint)):
        keys.update(field.encode_name for field in msgspec.structs.fields(struct))
        keys.update(filter(None, [_tag_key(struct)]))
    return sorted(keys)


def _choices(hint: Any) -> str:
    """Returns 'one of: …' for a Literal or a tag; else an empty text."""
    literals = [member for member in _members(hint) if get_origin(member) is Literal]
    values = dict.fromkeys(str(value) for literal in literals for value in get_args(literal))
    return f"one of: {', '.join(values)}" if values else ""


def _shown(failure: _Failure) -> str:
    if any(_SECRET.search(str(key)) for key in failure.path):
        return f"a {type(failure.value).__name__}"  # a password must not appear in a log
    if failure.value is None:
        return "nothing (null)"
    if isinstance(failure.value, dict):
        return f"a mapping of keys ({', '.join(map(str, failure.value))})"[:60]
    if isinstance(failure.value, list):
        return f"a list of {len(failure.value)}"
    text = str(failure.value).lower() if isinstance(failure.value, bool) else repr(failure.value)
    if "@" in text:
        return "text that may hold a login"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _quoting_hint(failure: _Failure, what: str) -> str:
    takes_text = what.startswith("text") and not isinstance(failure.value, str | list | dict)
    return "; quote it to make it text" if takes_text and failure.value is not None else ""


def _dotted(path: _Path, start: str) -> str:
    text = start
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text

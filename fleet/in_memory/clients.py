"""Clients of a federation: which rows of which arrays each of them has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.data.places import Places
from edge_agent.data.table import Array, Index, Table, feature_names
from fedge.errors import ConfigError, DataError, did_you_mean
from fedge.yaml_config import parse_config
from fleet.agent_rows import NumberedNames, RowLists, RowsByAgent
from fleet.in_memory.client_ids import CLIENT_ID, read_client_ids
from fleet.in_memory.columns import WEIGHT, is_mapping, read_columns
from fleet.in_memory.values import plain, whole
from fleet.partition import BY_LABEL, PartitionConfig, client_ids, partition
from models.package.spec import ModelSpec, TensorSpec

PREFIX = "client"
#: As `broker.protocol.messages.Id`.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOW = (
    "give a mapping from names to (x, y), a list of (x, y), (x, y, client_id), or "
    "fedge.partition(x, y, clients=100)"
)


@dataclass(frozen=True, eq=False)
class Clients:
    """Arrays, and which rows of them each client has.

    Attributes:
        data: `(x, y)`, or arrays by name, as given; not copied.
        rows: numbers of each client's rows.
        total: number of rows that were dealt out, or left out on purpose.
        renamed: client by its name here, where its own made no name.
        prefix: of names that were made.
    """

    data: Any
    rows: RowsByAgent = field(repr=False)
    total: int
    renamed: Mapping[str, str] = field(default_factory=dict, repr=False)
    prefix: str = PREFIX

    @property
    def names(self) -> Sequence[str]:
        """Names of the clients."""
        return self.rows.names

    @property
    def sizes(self) -> Array:
        """Number of rows of each client, shape (clients,)."""
        return self.rows.sizes

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Array:
        """Returns the numbers of a client's rows, ascending."""
        return self.rows[name]

    def __repr__(self) -> str:
        sizes = self.sizes
        return f"<{len(self)} clients of {sizes.min():,} to {sizes.max():,} rows>"


def deal_out(
    data: Any, labels: Any, client_id: Any, seed: int, settings: Mapping[str, Any]
) -> Clients:
    """Returns rows dealt out to clients; see `fleet.api.partition`.

    Args:
        data: see `Clients`.
        labels: of kinds that go by labels, one a row; of others any array of as many rows.
        client_id: of kind client, the client of each row.
        seed: of what is random.
        settings: keys of a scenario's `partition` section.

    Raises:
        ConfigError: a setting is wrong, or there are too few rows.
    """
    given = {"prefix": PREFIX, **plain(settings)}
    config = parse_config(given, PartitionConfig, "", key="partition")
    rng = np.random.default_rng(whole(seed, "partition: seed", 0))
    client = None if client_id is None else read_client_ids(client_id)
    if config.kind == "client":
        if client is None:
            raise ConfigError(f"partition: kind client needs {CLIENT_ID}=, the client of each row")
        rows = partition(config, None, client, rng)
        return Clients(data, rows, len(client), _renamed(config, client, rows), config.prefix)
    by = _labels(labels, config.kind) if config.kind in BY_LABEL else np.asarray(labels)
    try:
        rows = partition(config, by, None, rng)
    except ConfigError as error:
        raise ConfigError(f"partition: {error}") from error
    return Clients(data, rows, len(by), prefix=config.prefix)


def _labels(values: Any, kind: str) -> Array:
    """Returns one label a row: numbers or texts.

    Raises:
        ConfigError: they are of another shape or type.
    """
    labels = np.asarray(values)
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels.flat):
        labels = labels.astype(str)  # as tables hold texts
    if labels.ndim > 1 and labels.size == len(labels):
        labels = labels.reshape(-1)
    if labels.ndim != 1 or labels.dtype.kind not in "biufSU":
        raise ConfigError(
            f"partition: kind {kind} goes by one label a row, got {labels.dtype} of shape "
            f"{labels.shape}: give labels=, one number or text a row"
        )
    return labels


def _renamed(config: PartitionConfig, client: Array, rows: RowsByAgent) -> dict[str, str]:
    values = client_ids(config, client)
    return {name: str(values[name]) for name in rows if name != f"{config.prefix}-{values[name]}"}


@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows of all clients in arrays that they share.

    Attributes:
        columns: by name of the model's columns, shape (n, *shape).
        rows: numbers of each client's rows.
        renamed: see `Clients`.
        counts: rows of each client, where its rows were given by themselves; else empty.
        prefix: see `Clients`.
    """

    columns: Mapping[str, Array]
    rows: RowsByAgent
    renamed: Mapping[str, str] = field(default_factory=dict)
    counts: Sequence[int] = ()
    prefix: str = PREFIX

    @property
    def is_weighted(self) -> bool:
        """Whether rows have weights."""
        return WEIGHT in self.columns

    def names_of(self, own: Sequence[Any]) -> list[str]:
        """Returns the names here of clients, each once; an unknown one as its text.

        Args:
            own: as they were given: number or text of a client, or its name here.
        """
        by_own = {text: name for name, text in self.renamed.items()}
        found: dict[str, None] = {}
        for one in own:
            text, made = str(one), f"{self.prefix}-{one}"
            order = (text, made) if isinstance(one, str) else (made, text)
            known = (name for name in (by_own.get(text, ""), *order) if name in self.rows)
            found[next(known, None) or text] = None
        return list(found)

    def table(self, spec: ModelSpec) -> Table:
        """Returns the rows as the rest of the fleet knows them."""
        if not self.counts:
            return table_of(spec, self.columns, "clients")
        return table_of(spec, self.columns, *zip(self.rows.names, self.counts, strict=True))


def table_of(spec: ModelSpec, columns: Mapping[str, Array], *parts: str | tuple[str, int]) -> Table:
    """Returns arrays as a table.

    Args:
        spec: of the model.
        columns: by name, shape (n, *shape).
        parts: what the rows are called in messages: one name for all of them, or names with the
            number of rows of each.
    """
    places = Places("row")
    for part in parts:
        name, count = (part, _length(columns)) if isinstance(part, str) else part
        places.begin(Path(name))
        places.extend(np.arange(count))
    weight = [TensorSpec(WEIGHT)] if WEIGHT in columns else []
    tensors = [*spec.inputs, *spec.targets, *weight]
    return Table(
        Path(parts[0] if isinstance(parts[0], str) else "clients"),
        columns,
        None,
        {tensor.name: feature_names(tensor, tensor.name) for tensor in tensors},
        {tensor.name: [tensor.name] for tensor in spec.inputs},
        places,
    )


def _length(columns: Mapping[str, Array]) -> int:
    return len(next(iter(columns.values())))


def gather(spec: ModelSpec, clients: Any) -> Gathered:
    """Returns the rows of all clients; arrays that they share already are not copied.

    Args:
        spec: of the model.
        clients: see `fleet.api.simulate`.

    Raises:
        DataError: arrays do not fit the model, or a client has no rows.
    """
    if isinstance(clients, Clients):
        return _shared(spec, clients)
    if is_mapping(clients):
        named = dict(clients.items())
        if CLIENT_ID in named:
            client = named.pop(CLIENT_ID)
            return _by_client_id(spec, named, client)
        _check_is_of_clients(spec, named)
        return _separate(spec, list(named), list(named.values()))
    if isinstance(clients, tuple) and clients and not _is_of_arrays(clients[-1]):
        if len(clients) != 3:
            raise DataError(f"clients: arrays do not say which client has which row: {_HOW}")
        x, y, client = clients
        return _by_client_id(spec, (x, y), client)
    if isinstance(clients, list | tuple):
        return _separate(spec, NumberedNames(PREFIX, len(clients)), clients)
    raise DataError(f"clients is a {type(clients).__name__}: {_HOW}")


def _is_of_arrays(value: Any) -> bool:
    """Whether something is a client's arrays: `(x, y)`, or by name."""
    return isinstance(value, tuple) or is_mapping(value)


def _check_is_of_clients(spec: ModelSpec, named: Mapping[Any, Any]) -> None:
    """Raises DataError for arrays by column without the client of each row."""
    columns = {"x", "y", *(tensor.name for tensor in (*spec.inputs, *spec.targets))}
    if named and set(named) <= columns:
        raise DataError(
            f"clients has the arrays {', '.join(map(str, named))} and no {CLIENT_ID!r}, the client "
            f"of each row: {_HOW}"
        )
    if (near := did_you_mean(CLIENT_ID, [str(name) for name in named])) and columns & set(named):
        raise DataError(f"clients: no array {CLIENT_ID!r}; {near}")


def _by_client_id(spec: ModelSpec, data: Any, client: Any) -> Gathered:
    clients = deal_out(data, None, client, 0, {"kind": "client"})
    return _shared(spec, clients, f"{CLIENT_ID} has")


def _shared(spec: ModelSpec, clients: Clients, what: str = "partition dealt out") -> Gathered:
    columns = read_columns(spec, clients.data, "clients")
    name, found = next((name, len(array)) for name, array in columns.items())
    if found != clients.total:
        raise DataError(
            f"clients: {name} has {found:,} rows, {what} {clients.total:,}: each row needs its "
            "client"
        )
    return Gathered(columns, clients.rows, clients.renamed, prefix=clients.prefix)


def _separate(spec: ModelSpec, given: Sequence[Any], values: Sequence[Any]) -> Gathered:
    """Returns clients that have arrays of their own."""
    if not len(given):
        raise DataError(f"there are no clients: {_HOW}")
    names = given if isinstance(given, NumberedNames) else _client_names(given)
    parts = [
        read_columns(spec, value, str(name)) for name, value in zip(given, values, strict=True)
    ]
    counts = [_length(part) for part in parts]
    if 0 in counts:
        raise DataError(f"{given[counts.index(0)]}: no rows; leave this client out")
    if len({frozenset(part) for part in parts}) > 1:
        raise DataError(f"clients: some have {WEIGHT!r} and some have not: give all of them one")
    columns = {key: _joined([part[key] for part in parts]) for key in parts[0]}
    total = sum(counts)
    index: Index = np.arange(total, dtype=np.int32 if total < 2**31 else np.int64)
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    rows = RowsByAgent(names, RowLists(index, offsets))
    renamed = {
        name: str(own)
        for name, own in zip(names, given, strict=True)
        if name not in (own, f"{PREFIX}-{own}")
    }
    return Gathered(columns, rows, renamed, counts)


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _client_names(given: Sequence[Any]) -> tuple[str, ...]:
    """Returns names that agents may have: those given, where all of them may be names."""
    own = [name if isinstance(name, str) else f"{PREFIX}-{name}" for name in given]
    if all(map(_ID.fullmatch, own)) and len(set(own)) == len(own):
        return tuple(own)
    return tuple(f"{PREFIX}-{number}" for number in range(len(own)))

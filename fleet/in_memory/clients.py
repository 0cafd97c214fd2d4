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
from fleet.in_memory.columns import WEIGHT, is_mapping, read_columns
from fleet.partition import PartitionConfig, client_ids, partition
from models.package.spec import ModelSpec, TensorSpec

#: Name of the column, or array, with the client of each row.
CLIENT_ID = "client_id"
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
        renamed: client by its name here, where its own made no name.
    """

    data: Any
    rows: RowsByAgent = field(repr=False)
    renamed: Mapping[str, str] = field(default_factory=dict, repr=False)

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

    Raises:
        ConfigError: a setting is wrong, or there are too few rows.
    """
    config = parse_config({"prefix": PREFIX, **settings}, PartitionConfig, "", key="partition")
    rng = np.random.default_rng(seed)
    client = None if client_id is None else _one_axis(client_id, CLIENT_ID)
    if config.kind == "client":
        if client is None:
            raise ConfigError(f"partition: kind client needs {CLIENT_ID}=, the client of each row")
        rows = partition(config, None, client, rng)
        return Clients(data, rows, _renamed(config, client, rows))
    given = np.asarray(labels)
    if given.ndim != 1 and config.kind in ("shards", "dirichlet"):
        raise ConfigError(
            f"partition: kind {config.kind} goes by one label a row, y has shape {given.shape}: "
            "give labels=, one number a row"
        )
    return Clients(data, partition(config, given, None, rng))


def _renamed(config: PartitionConfig, client: Array, rows: RowsByAgent) -> dict[str, str]:
    values = client_ids(config, client)
    return {name: str(values[name]) for name in rows if name != f"{config.prefix}-{values[name]}"}


def _one_axis(values: Any, name: str) -> Array:
    array: Array = np.asarray(values)
    if array.dtype.kind == "O":  # texts of a table
        array = array.astype(str)
    if array.ndim != 1 or array.dtype.kind not in "biuSU":
        raise DataError(
            f"{name} is {array.dtype} of shape {array.shape}, expected one whole number or text "
            "a row"
        )
    return array


@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows of all clients in arrays that they share.

    Attributes:
        columns: by name of the model's columns, shape (n, *shape).
        rows: numbers of each client's rows.
        renamed: see `Clients`.
        counts: rows of each client, where its rows were given by themselves; else empty.
    """

    columns: Mapping[str, Array]
    rows: RowsByAgent
    renamed: Mapping[str, str] = field(default_factory=dict)
    counts: Sequence[int] = ()

    @property
    def is_weighted(self) -> bool:
        """Whether rows have weights."""
        return WEIGHT in self.columns

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
            return _shared(spec, deal_out(named, None, client, 0, {"kind": "client"}))
        _check_is_of_clients(spec, named)
        return _separate(spec, list(named), list(named.values()))
    if isinstance(clients, tuple) and clients and not _is_of_arrays(clients[-1]):
        if len(clients) != 3:
            raise DataError(f"clients: arrays do not say which client has which row: {_HOW}")
        x, y, client = clients
        return _shared(spec, deal_out((x, y), None, client, 0, {"kind": "client"}))
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


def _shared(spec: ModelSpec, clients: Clients) -> Gathered:
    columns = read_columns(spec, clients.data, "clients")
    found = _length(columns)
    needed = int(clients.rows.index.max(initial=-1)) + 1
    if found < needed:
        raise DataError(f"clients: {found:,} rows, but {needed:,} have a client")
    return Gathered(columns, clients.rows, clients.renamed)


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

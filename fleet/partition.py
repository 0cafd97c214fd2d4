"""Partitioners: assign the rows of one data file to the agents of a fleet.

Every partitioner returns ascending indexes for each client. No row goes to two clients, and every
row goes to one client unless the docstring says otherwise. Ascending indexes keep each client's
rows in the order of time, which the split into training and held-out rows relies on. Which of the
rows of a label a client gets is random: else its latest rows would be those of one label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from math import isfinite
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.machine.roster import MAX_AGENTS
from fedge.errors import ConfigError
from fleet.agent_rows import NumberedNames, RowLists, RowsByAgent

Array = NDArray[Any]
Kind = Literal["client", "iid", "shards", "dirichlet", "sample"]

#: Settings by the kind of partition that has a use for them; the others all kinds have.
SETTINGS_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "iid": (),
    "shards": ("shards_per_client",),
    "dirichlet": ("alpha", "minimum"),
    "sample": ("rows",),
    "client": ("client",),
}
#: Rows of all clients that draw with replacement: four bytes each.
_MAX_DRAWN = 1_000_000_000
#: Kinds that go by the label of each row; the others by the number of rows alone.
BY_LABEL = ("shards", "dirichlet")
#: So many different labels, with so few rows each on average, are no classes.
_MANY_LABELS, _FEW_ROWS = 100, 10

#: Leaves room for "-" and a number within the 64 characters of an agent id.
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,40}")
#: As `broker.protocol.messages.Id`.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: A whole number, also as a spreadsheet or pandas writes one beside empty cells: `33.0`.
_WHOLE = re.compile(r"(0|[1-9][0-9]{0,17})(?:\.0+)?")


class PartitionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `partition:` section of a scenario.

    Attributes:
        kind: `client`: the data names the client of each row; `iid`: evenly at random; `shards`:
            each client has rows of a few labels; `dirichlet`: each client has its own mix of
            labels; `sample`: each client draws rows of its own from all, with replacement.
        client: for `client`; name of the array or column with the client of each row.
        prefix: agent ids are `<prefix>-<number>`, or `<prefix>-<client>`.
        clients: number of clients. Required except for `client`, where the first ones (in ascending
            order) are kept and the rows of the others are left out.
        shards_per_client: for `shards`; fewer shards mean fewer labels per client.
        alpha: for `dirichlet`; small (0.1) gives each client one or two labels, large (100) gives
            all clients the same mix.
        minimum: for `dirichlet`; rows that each client must get, or the partition is refused.
        rows: for `sample`; rows of each client.
    """

    kind: Kind = "client"
    client: str = "client"
    prefix: str = "agent"
    clients: int | None = None
    shards_per_client: int = 2
    alpha: float = 0.5
    minimum: int = 1
    rows: int = 16

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ValueError(
                f"prefix must be 1 to 40 letters, digits, '_' or '-', got {self.prefix!r}"
            )
        if self.clients is None and self.kind != "client":
            raise ValueError(f"kind {self.kind} needs the number of clients")
        for name in ("clients", "shards_per_client", "minimum", "rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.clients is not None and self.clients > MAX_AGENTS:
            raise ValueError(
                f"clients is {self.clients:,}: a federation has at most {MAX_AGENTS:,} agents"
            )
        if not isfinite(self.alpha) or self.alpha <= 0:
            raise ValueError(f"alpha must be finite and above 0, got {self.alpha}")


def unused(
    kind: str, given: Collection[str], of_kind: Mapping[str, tuple[str, ...]] = SETTINGS_OF_KIND
) -> dict[str, tuple[str, ...]]:
    """Returns the settings that a kind of partition has no use for, with the kinds that have.

    Args:
        kind: one that is unknown is refused elsewhere.
        given: names of settings.
        of_kind: names by kind; those of no kind are of all.
    """
    known = sorted({name for names in of_kind.values() for name in names} & set(given))
    if kind not in of_kind:
        return {}
    return {
        name: tuple(other for other, names in of_kind.items() if name in names)
        for name in known
        if name not in of_kind[kind]
    }


def by_client(client: Array) -> RowLists:
    """Returns the rows of each client, in ascending order of the client's value.

    Args:
        client: client of each row, shape (n,): whole numbers or texts.
    """
    values, code = np.unique(client, return_inverse=True)
    return RowLists.of_owners(code, len(values))


def iid(n: int, clients: int, rng: np.random.Generator) -> RowLists:
    """Assigns n rows at random; the clients' numbers of rows differ by at most one.

    Raises:
        ConfigError: fewer rows than clients.
    """
    _check_enough(n, clients, f"{clients:,} clients")
    owner = np.empty(n, np.int32)
    owner[rng.permutation(n)] = np.repeat(np.arange(clients), _even_sizes(n, clients))
    return RowLists.of_owners(owner, clients)


def label_shards(
    labels: Array, clients: int, shards_per_client: int, rng: np.random.Generator
) -> RowLists:
    """Sorts rows by label, cuts them into equal shards, and gives each client a few at random.

    The "pathological non-IID" partition of McMahan et al. 2017 (arXiv 1602.05629), section 3:
    with two shards, most clients see two labels. Shards differ by at most one row. Rows of one
    label are cut in random order.

    Args:
        labels: shape (n,); classes, or numbers to sort by.
        clients: number of clients.
        shards_per_client: shards each client gets.
        rng: assigns the shards to the clients, and the rows of a label to its shards.

    Raises:
        ConfigError: fewer rows than shards.
    """
    shards = clients * shards_per_client
    _check_enough(len(labels), shards, f"{shards:,} shards")
    owner_of_shard = np.empty(shards, np.int32)
    owner_of_shard[rng.permutation(shards)] = np.repeat(np.arange(clients), shards_per_client)
    owner = np.empty(len(labels), np.int32)
    order = np.lexsort((rng.permutation(len(labels)), labels))
    owner[order] = np.repeat(owner_of_shard, _even_sizes(len(labels), shards))
    return RowLists.of_owners(owner, clients)


def dirichlet(
    labels: Array, clients: int, alpha: float, rng: np.random.Generator, minimum: int = 1
) -> RowLists:
    """Draws a label mix q ~ Dir(alpha * p) for each client, p being the mix of all rows.

    Hsu et al. 2019 (arXiv 1909.06335), section 3: all clients get the same number of rows (to
    within one), drawn from q without replacement; a label that is used up is left out of q. The
    rows a client gets of a label are random. Since every row is assigned, the last clients take the
    remaining rows and follow their q less closely than the first; clients are served in random
    order, so a client's number is unrelated to this.

    Args:
        labels: classes, whole numbers or texts, shape (n,).
        clients: number of clients.
        alpha: concentration, above 0.
        rng: draws the mixes and the rows.
        minimum: rows each client must get.

    Raises:
        ConfigError: labels are no classes, or there are too few rows.
    """
    _check_classes(labels)
    _check_enough(len(labels), clients * minimum, f"{clients:,} clients of at least {minimum}")
    pools = [rng.permutation(pool) for pool in by_client(labels)]
    left = np.array([len(pool) for pool in pools])
    prior = left / left.sum()
    sizes = _even_sizes(len(labels), clients)
    owner = np.empty(len(labels), np.int32)
    for number in rng.permutation(clients):
        counts = _draw(rng.dirichlet(alpha * prior), left, int(sizes[number]), rng)
        for pool, size, count in zip(pools, left, counts, strict=True):
            owner[pool[size - count : size]] = number
        left = left - counts
    return RowLists.of_owners(owner, clients)


def sample(n: int, clients: int, rows: int, rng: np.random.Generator) -> RowLists:
    """Draws the rows of each client at random from all n, with replacement.

    The only kind with more clients than rows, and with rows that belong to several clients: for
    fleets that are larger than the data.

    Args:
        n: number of rows there are, above 0.
        clients: number of clients.
        rows: of each client.
        rng: draws them.

    Raises:
        ConfigError: the clients' rows are more than fit in memory.
    """
    if clients * rows > _MAX_DRAWN:
        raise ConfigError(
            f"{clients:,} clients with {rows:,} rows each draw {clients * rows:,} rows, more than "
            f"{_MAX_DRAWN:,}: take fewer rows or fewer clients"
        )
    drawn = rng.integers(0, n, (clients, rows), np.int32 if n < 2**31 else np.int64)
    drawn.sort(axis=1)
    return RowLists(drawn.reshape(-1), np.arange(clients + 1) * rows)


def partition(
    config: PartitionConfig, labels: Array | None, client: Array | None, rng: np.random.Generator
) -> RowsByAgent:
    """Returns the rows of each agent, by agent id.

    With `kind: client` the id carries the client's own number or name (`writer-2595`), see
    `client_ids`; with other kinds the position (`agent-0`).

    Args:
        config: kind of partition and its settings.
        labels: label of each row, shape (n,).
        client: client of each row, shape (n,); needed by `kind: client` alone.
        rng: the same generator state gives the same partition.

    Raises:
        ConfigError: the labels or clients that the kind needs are missing, or too few rows.
    """
    if config.kind == "client":
        return _named_clients(config, client)
    if labels is None:
        raise ConfigError(f"kind {config.kind} needs the labels of the rows")
    parts = PARTITIONERS[config.kind](config, labels, rng)
    return RowsByAgent(NumberedNames(config.prefix, len(parts)), parts)


def _iid(config: PartitionConfig, labels: Array, rng: np.random.Generator) -> RowLists:
    return iid(len(labels), config.clients or 1, rng)


def _shards(config: PartitionConfig, labels: Array, rng: np.random.Generator) -> RowLists:
    return label_shards(labels, config.clients or 1, config.shards_per_client, rng)


def _dirichlet(config: PartitionConfig, labels: Array, rng: np.random.Generator) -> RowLists:
    return dirichlet(labels, config.clients or 1, config.alpha, rng, config.minimum)


def _sample(config: PartitionConfig, labels: Array, rng: np.random.Generator) -> RowLists:
    if not len(labels):
        raise ConfigError("kind sample draws from the rows of the data, which has none")
    return sample(len(labels), config.clients or 1, config.rows, rng)


#: Random partitioners by kind; `client` needs no randomness but another array.
PARTITIONERS: dict[str, Callable[[PartitionConfig, Array, np.random.Generator], RowLists]] = {
    "iid": _iid,
    "shards": _shards,
    "dirichlet": _dirichlet,
    "sample": _sample,
}


def _named_clients(config: PartitionConfig, client: Array | None) -> RowsByAgent:
    if client is None:
        raise ConfigError("kind client needs an array with the client of each row")
    names = client_ids(config, client)
    if config.clients is not None and config.clients > len(names):
        raise ConfigError(f"clients is {config.clients}, the data has {len(names)} clients")
    rows = RowsByAgent(tuple(names), by_client(client))
    return rows if config.clients is None else rows.taken(np.arange(config.clients))


def client_ids(config: PartitionConfig, client: Array) -> dict[str, Any]:
    """Returns the value of each client by its agent id, in ascending order of the values.

    An id carries the value (`user-33`, `site-north`) when all values make ids, else the position.

    Args:
        config: with the prefix.
        client: client of each row, shape (n,).
    """
    values = np.unique(client).tolist()
    ids = [f"{config.prefix}-{value}" for value in values]
    is_negative = any(isinstance(value, int | float) and value < 0 for value in values)
    if is_negative or not all(map(_ID.fullmatch, ids)):
        ids = [f"{config.prefix}-{number}" for number in range(len(values))]
    return dict(zip(ids, values, strict=True))


def client_values(names: Sequence[str], codes: Array) -> Array:
    """Returns the client of each row from texts: as whole numbers, where all of them are.

    Args:
        names: text of each code, as a column of a .csv file has it.
        codes: of each row, shape (n,).
    """
    whole = [_WHOLE.fullmatch(name) for name in names]
    values: Array = np.array([m[1] for m in whole if m] if all(whole) else names)
    return values.astype(np.int64)[codes] if all(whole) else values[codes]


def _draw(mix: Array, left: Array, size: int, rng: np.random.Generator) -> Array:
    """Draws the number of rows of each label: `size` draws from `mix`, at most those `left`.

    A draw of a label that is used up is drawn again, which is the same as drawing one at a time
    from the mix of the labels that are left.
    """
    counts = np.zeros_like(left)
    while (missing := size - int(counts.sum())) > 0:
        odds = np.where(counts < left, mix, 0.0)
        if odds.sum() <= 0:  # a small alpha leaves zeros: use the remaining rows
            odds = (left - counts).astype(np.float64)
        drawn = rng.multinomial(missing, odds / odds.sum())
        counts = np.minimum(counts + drawn, left)
    return counts


def _even_sizes(n: int, parts: int) -> Array:
    """Returns the sizes of equal parts of n; the first ones have one more where n does not fit."""
    sizes = np.full(parts, n // parts)
    sizes[: n % parts] += 1
    return sizes


def _check_classes(labels: Array) -> None:
    """Raises ConfigError for a continuous target: a mix of its values means nothing."""
    # Class indices read from a .csv arrive as float64, with NaN where there is none.
    known = labels[np.isfinite(labels)] if labels.dtype.kind == "f" else labels
    whole = labels.dtype.kind != "f" or np.array_equal(known, np.rint(known))
    different = len(np.unique(known))
    if whole and (different <= _MANY_LABELS or different * _FEW_ROWS <= len(labels)):
        return
    fractions = "" if whole else ", with fractions"
    raise ConfigError(
        f"kind dirichlet draws a mix of classes, got {different:,} different numbers in "
        f"{len(labels):,} rows{fractions}: take kind shards, which sorts rows by any number, or "
        "iid; fedge.partition in Python takes classes of your own in labels="
    )


def _check_enough(rows: int, needed: int, what: str) -> None:
    if rows < needed:
        raise ConfigError(
            f"{rows:,} rows are too few for {what}: take fewer, or kind sample, where each draws "
            "rows with replacement (--set partition.kind=sample --set partition.rows=16)"
        )

"""Partitioners: every row goes to one client, with the distribution of each kind."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedge.errors import ConfigError
from fedge.yaml_config import parse_config
from fleet.agent_rows import RowLists
from fleet.partition import (
    PartitionConfig,
    by_client,
    client_values,
    dirichlet,
    iid,
    label_shards,
    partition,
    sample,
)

EXAMPLES = Path(__file__).parents[3] / "examples" / "data"

LABELS = hnp.arrays(np.int8, st.integers(40, 120), elements=st.integers(0, 6))
SEEDS = st.integers(0, 2**32 - 1)


def config(**keys: Any) -> PartitionConfig:
    return parse_config(keys, PartitionConfig, "fleet.yaml", key="partition")


def assert_each_row_once(parts: RowLists, n: int) -> None:
    assert np.array_equal(np.sort(parts.index), np.arange(n))
    assert parts.offsets.tolist() == [0, *np.cumsum([len(part) for part in parts])]
    assert all((np.diff(part) > 0).all() for part in parts)


@given(hnp.arrays(np.int16, st.integers(1, 80), elements=st.integers(-5, 5)))
def test_each_client_gets_its_own_rows(client: np.ndarray[Any, np.dtype[np.int16]]) -> None:
    parts = by_client(client)
    assert_each_row_once(parts, len(client))
    assert [set(client[part].tolist()) for part in parts] == [{v} for v in np.unique(client)]


@given(n=st.integers(1, 200), data=st.data(), seed=SEEDS)
def test_iid_covers_all_rows_evenly(n: int, data: st.DataObject, seed: int) -> None:
    clients = data.draw(st.integers(1, n))
    parts = iid(n, clients, np.random.default_rng(seed))
    assert_each_row_once(parts, n)
    assert len(parts) == clients
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(labels=LABELS, clients=st.integers(1, 10), shards=st.integers(1, 4), seed=SEEDS)
def test_shards_cover_all_rows(
    labels: np.ndarray[Any, np.dtype[np.int8]], clients: int, shards: int, seed: int
) -> None:
    parts = label_shards(labels, clients, shards, np.random.default_rng(seed))
    assert_each_row_once(parts, len(labels))
    assert len(parts) == clients
    assert max(map(len, parts)) - min(map(len, parts)) <= shards


@given(
    labels=LABELS,
    clients=st.integers(1, 40),
    alpha=st.floats(1e-4, 1e4),
    seed=SEEDS,
)
def test_dirichlet_covers_all_rows_evenly_for_any_alpha(
    labels: np.ndarray[Any, np.dtype[np.int8]], clients: int, alpha: float, seed: int
) -> None:
    parts = dirichlet(labels, clients, alpha, np.random.default_rng(seed))
    assert_each_row_once(parts, len(labels))
    assert len(parts) == clients
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_two_shards_of_whole_labels_are_two_labels_per_client() -> None:
    labels = np.tile(np.arange(10), 60)  # 600 rows: 20 shards of 30, two per label
    parts = label_shards(labels, 10, 2, np.random.default_rng(1))
    assert all(len(part) == 60 for part in parts)
    assert max(len(np.unique(labels[part])) for part in parts) == 2


def test_a_shard_is_a_run_of_sorted_labels_and_goes_to_one_client() -> None:
    """As the plain words of the docstring make it: sort, cut, deal out."""
    labels = np.array([3, 1, 2, 1, 3, 2, 2, 1, 3, 1, 2])
    pieces = np.array_split(np.sort(labels), 6)
    dealt = np.random.default_rng(4).permutation(6).reshape(3, 2)
    expected = [np.concatenate([pieces[p] for p in np.sort(own)]).tolist() for own in dealt]
    parts = label_shards(labels, 3, 2, np.random.default_rng(4))
    assert [np.sort(labels[part]).tolist() for part in parts] == expected


@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet", "sample"])
def test_the_last_rows_of_a_client_have_the_labels_of_its_others(kind: str) -> None:
    labels = np.tile(np.arange(10), 300)
    cfg = config(kind=kind, clients=10, rows=300, alpha=100)
    for rows in partition(cfg, labels, None, np.random.default_rng(0)).values():
        assert (np.diff(rows) >= 0).all()
        first, last = labels[rows[:240]], labels[rows[240:]]
        common = np.bincount(first, minlength=10) >= 20
        assert set(last.tolist()) >= set(np.flatnonzero(common).tolist())


def test_shards_of_a_continuous_target_are_ranges_of_it() -> None:
    values = np.random.default_rng(1).normal(size=120)
    parts = label_shards(values, 12, 1, np.random.default_rng(0))
    ranges = sorted((values[part].min(), values[part].max()) for part in parts)
    assert all(high < low for (_, high), (low, _) in itertools.pairwise(ranges))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.linspace(0.0, 9.9, 500), "500 different numbers in 500 rows, with fractions: take"),
        (np.arange(500) // 2 * 100, "250 different numbers in 500 rows: take kind shards, which"),
        (np.arange(3000.0) // 2, "1,500 different numbers in 3,000 rows: take kind shards, which"),
    ],
)
def test_a_dirichlet_draw_over_a_continuous_target_is_refused(
    labels: np.ndarray[Any, Any], found: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        dirichlet(labels, 4, 1.0, np.random.default_rng(0))
    assert f"kind dirichlet draws a mix of classes, got {found}" in str(caught.value)


def test_many_classes_with_many_rows_and_rows_without_a_label_are_classes() -> None:
    labels = np.repeat(np.arange(200.0), 10)
    labels[:7] = np.nan
    assert_each_row_once(dirichlet(labels, 4, 1.0, np.random.default_rng(0)), 2000)


def test_iid_parts_are_equal_pieces_of_one_permutation() -> None:
    pieces = np.array_split(np.random.default_rng(4).permutation(11), 3)
    parts = iid(11, 3, np.random.default_rng(4))
    assert [part.tolist() for part in parts] == [np.sort(piece).tolist() for piece in pieces]


def test_more_clients_than_65536_have_their_own_rows() -> None:
    parts = iid(70_000, 70_000, np.random.default_rng(0))
    expected = np.random.default_rng(0).permutation(70_000)
    assert np.array_equal(parts.index, expected)


def test_a_sample_draws_so_many_rows_for_each_of_more_clients_than_rows() -> None:
    parts = sample(50, 2000, 16, np.random.default_rng(0))
    assert {len(part) for part in parts} == {16}
    assert all((np.diff(part) >= 0).all() for part in parts)
    counts = np.bincount(parts.index, minlength=50)
    # 32,000 draws, 640 expected of each row, standard deviation 25: five of them.
    assert (len(parts), counts.min() > 515, counts.max() < 765) == (2000, True, True)


def mean_largest_share(alpha: float) -> float:
    """Mean over clients of the share of their most frequent label; 0.1 when all ten are even."""
    labels = np.tile(np.arange(10), 1000)
    parts = dirichlet(labels, 20, alpha, np.random.default_rng(5))
    return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))


def test_alpha_goes_from_one_label_per_client_to_the_same_mix_for_all() -> None:
    assert mean_largest_share(0.01) > 0.8
    assert 0.2 < mean_largest_share(1.0) < 0.7
    assert mean_largest_share(1e4) < 0.15


def test_class_indices_stored_as_floats_are_class_labels() -> None:
    labels = np.arange(60) % 3
    whole, floats = (
        dirichlet(array, 4, 1.0, np.random.default_rng(0)) for array in (labels, labels / 1.0)
    )
    assert [part.tolist() for part in whole] == [part.tolist() for part in floats]


def test_dirichlet_follows_the_mix_of_all_rows() -> None:
    labels = np.repeat([0, 1], [9000, 1000])
    parts = dirichlet(labels, 10, 1e4, np.random.default_rng(0))
    shares = [float(np.mean(labels[part])) for part in parts]
    assert shares == pytest.approx([0.1] * 10, abs=0.05)


@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet", "sample"])
def test_the_seed_decides(kind: str) -> None:
    labels = np.arange(60) % 5
    cfg = config(kind=kind, clients=6)
    one, same, other = (
        partition(cfg, labels, None, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in same.items()}
    assert {k: v.tolist() for k, v in one.items()} != {k: v.tolist() for k, v in other.items()}
    assert list(one) == [f"agent-{number}" for number in range(6)]


def test_agents_are_named_after_their_client() -> None:
    client = np.array([12, 5, 12, 7])
    parts = partition(config(kind="client", prefix="writer"), None, client, np.random.default_rng())
    assert {key: rows.tolist() for key, rows in parts.items()} == {
        "writer-5": [1], "writer-7": [3], "writer-12": [0, 2],
    }  # fmt: skip


@pytest.mark.parametrize("client", [np.array(["b", "a/x", "b"]), np.array([4, -1, 4])])
def test_clients_that_make_no_agent_id_are_numbered(client: np.ndarray[Any, Any]) -> None:
    parts = partition(config(kind="client"), None, client, np.random.default_rng())
    assert {key: rows.tolist() for key, rows in parts.items()} == {
        "agent-0": [1], "agent-1": [0, 2],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["33", "7", "36"], {"user-33": [0, 3], "user-7": [1], "user-36": [2]}),
        (["33.0", "7.0", "36.00"], {"user-33": [0, 3], "user-7": [1], "user-36": [2]}),
        (["north", "A_1", "x-2"], {"user-north": [0, 3], "user-A_1": [1], "user-x-2": [2]}),
        (["007", "7", "08"], {"user-007": [0, 3], "user-7": [1], "user-08": [2]}),
    ],
)
def test_clients_of_a_text_column_keep_their_value(
    names: list[str], ids: dict[str, list[int]]
) -> None:
    client = client_values(names, np.array([0, 1, 2, 0]))
    parts = partition(config(kind="client", prefix="user"), None, client, np.random.default_rng())
    assert {key: rows.tolist() for key, rows in parts.items()} == ids
    numbers = [int(name.partition("-")[2]) for name in parts] if names[0] == "33" else []
    assert numbers == sorted(numbers)


def test_a_number_of_clients_takes_the_first_of_them() -> None:
    client = np.array([3, 1, 2, 1])
    parts = partition(config(kind="client", clients=2), None, client, np.random.default_rng())
    assert {key: rows.tolist() for key, rows in parts.items()} == {
        "agent-1": [1, 3], "agent-2": [2],
    }  # fmt: skip


def test_the_watch_data_makes_one_agent_per_wearer() -> None:
    with np.load(EXAMPLES / "har_watch.npz") as file:
        parts = partition(
            config(kind="client", prefix="wearer"), None, file["client"], np.random.default_rng()
        )
    assert list(parts) == [f"wearer-{number}" for number in range(10)]
    assert (min(map(len, parts.values())), sum(map(len, parts.values()))) == (150, 2369)


@pytest.mark.parametrize(
    ("keys", "labels", "client", "expected"),
    [
        ({"kind": "iid", "clients": 5}, np.arange(4), None, "4 rows are too few for 5 clients"),
        (
            {"kind": "shards", "clients": 3},
            np.arange(4),
            None,
            "4 rows are too few for 6 shards",
        ),
        (
            {"kind": "dirichlet", "clients": 2, "minimum": 3},
            np.arange(4),
            None,
            "4 rows are too few for 2 clients of at least 3",
        ),
        (
            {"kind": "dirichlet", "clients": 2},
            np.array([1.0, 0.5]),
            None,
            "kind dirichlet draws a mix of classes, got 2 different numbers in 2 rows, with",
        ),
        (
            {"kind": "iid", "clients": 2000},
            np.arange(4),
            None,
            "4 rows are too few for 2,000 clients: take fewer, or kind sample, where each draws "
            "rows with replacement (--set partition.kind=sample --set partition.rows=16)",
        ),
        (
            {"kind": "sample", "clients": 1000, "rows": 5 * 10**9},
            np.arange(4),
            None,
            "1,000 clients with 5,000,000,000 rows each draw 5,000,000,000,000 rows, more",
        ),
        ({"kind": "iid", "clients": 2}, None, None, "kind iid needs the labels of the rows"),
        (
            {"kind": "sample", "clients": 2},
            np.arange(0),
            None,
            "kind sample draws from the rows of the data, which has none",
        ),
        ({"kind": "client"}, np.arange(4), None, "kind client needs an array with the client"),
        (
            {"kind": "client", "clients": 3},
            None,
            np.array([1, 2, 1]),
            "clients is 3, the data has 2 clients",
        ),
    ],
)
def test_impossible_partition_is_refused(
    keys: dict[str, Any], labels: Any, client: Any, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        partition(config(**keys), labels, client, np.random.default_rng(0))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"kind": "iid"}, "partition: kind iid needs the number of clients"),
        ({"kind": "iid", "clients": 0}, "partition: clients must be at least 1, got 0"),
        ({"kind": "sorted"}, "partition.kind: expected one of: client, iid, shards, dirichlet"),
        ({"kind": "client", "prefix": "a/b"}, "partition: prefix must be 1 to 40 letters"),
        ({"kind": "client", "prefix": ""}, "partition: prefix must be 1 to 40 letters"),
        ({"kind": "dirichlet", "clients": 2, "alpha": 0}, "partition: alpha must be finite and"),
        ({"kind": "dirichlet", "clients": 2, "alpha": float("nan")}, "partition: alpha must be"),
        ({"kind": "shards", "clients": 2, "shards_per_client": 0}, "partition: shards_per_client"),
        ({"kind": "sample"}, "partition: kind sample needs the number of clients"),
        ({"kind": "sample", "clients": 2, "rows": 0}, "partition: rows must be at least 1, got 0"),
        ({"kind": "client", "seed": 1}, "partition.seed: unknown key; known keys: alpha, client,"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**keys)
    assert str(caught.value).startswith(f"fleet.yaml: {expected}")

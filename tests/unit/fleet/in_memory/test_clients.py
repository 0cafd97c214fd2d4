"""Arrays of a person: which rows each client has, and whether they fit the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from fedge.errors import ConfigError, DataError
from fleet.api import partition
from fleet.in_memory.clients import Clients, gather
from fleet.in_memory.columns import read_columns
from models.zoo import load_zoo

HOUSES = load_zoo("house_price").spec
DIGITS = load_zoo("handwritten_digit").spec
BOTH = load_zoo("audio_visual_digit").spec
X = np.arange(12.0).reshape(6, 2)
Y = np.arange(6.0)


class Table(dict[str, Any]):
    """Stands for a table of pandas, which is not installed: columns, and items."""

    @property
    def columns(self) -> list[str]:
        return list(self)


@pytest.mark.parametrize(
    "clients",
    [
        {"b": (X[:2], Y[:2]), "a": (X[2:], Y[2:])},
        {"b": {"x": X[:2], "y": Y[:2]}, "a": {"features": X[2:], "target": Y[2:]}},
        {"b": (X[:2].tolist(), Y[:2].tolist()), "a": (X[2:], Y[2:, None])},
    ],
)
def test_clients_by_name_are_put_one_behind_the_other(clients: Mapping[str, Any]) -> None:
    gathered = gather(HOUSES, clients)
    assert {name: rows.tolist() for name, rows in gathered.rows.items()} == {
        "b": [0, 1],
        "a": [2, 3, 4, 5],
    }
    assert np.array_equal(gathered.columns["features"], X)
    assert np.array_equal(gathered.columns["target"], Y)


def test_clients_in_a_list_are_numbered() -> None:
    gathered = gather(HOUSES, [(X[:1], Y[:1]), (X[1:], Y[1:])])
    assert list(gathered.rows.names) == ["client-0", "client-1"]
    assert gathered.renamed == {}


@pytest.mark.parametrize(
    ("given", "names", "renamed"),
    [
        ([7, 3], ["client-7", "client-3"], {}),
        (["Zoë", "al"], ["client-0", "client-1"], {"client-0": "Zoë", "client-1": "al"}),
    ],
)
def test_names_that_agents_cannot_have_are_replaced(
    given: list[Any], names: list[str], renamed: dict[str, str]
) -> None:
    gathered = gather(HOUSES, dict(zip(given, [(X, Y), (X, Y)], strict=True)))
    assert (list(gathered.rows.names), gathered.renamed) == (names, renamed)


@pytest.mark.parametrize(
    "clients",
    [
        (X, Y, np.array([5, 2, 2, 5, 5, 2])),
        (X.tolist(), Y.tolist(), [5, 2, 2, 5, 5, 2]),
        ({"features": X}, Y, [5, 2, 2, 5, 5, 2]),
        {"x": X, "y": Y, "client_id": [5, 2, 2, 5, 5, 2]},
        Table(
            median_income=X[:, 0],
            rooms_per_household=X[:, 1],
            target=Y,
            client_id=np.array(["5", "2", "2", "5", "5", "2"], dtype=object),
        ),
        partition(X, Y, client_id=np.array([5, 2, 2, 5, 5, 2])),
    ],
    ids=["tuple", "lists", "named", "mapping", "table", "partition"],
)
def test_a_client_id_says_which_rows_are_whose(clients: Any) -> None:
    gathered = gather(HOUSES, clients)
    assert {name: rows.tolist() for name, rows in gathered.rows.items()} == {
        "client-2": [1, 2, 5],
        "client-5": [0, 3, 4],
    }
    assert np.array_equal(gathered.columns["features"], X)


def test_arrays_that_clients_share_are_not_copied() -> None:
    gathered = gather(HOUSES, partition(X, Y, clients=3))
    assert np.shares_memory(gathered.columns["features"], X)
    assert np.shares_memory(gathered.columns["target"], Y)


def test_a_partition_gives_every_row_to_one_client_and_follows_its_seed() -> None:
    labels = np.arange(60) % 3
    first, again, other = (
        partition(np.zeros((60, 2)), labels, kind="dirichlet", clients=4, alpha=0.5, seed=seed)
        for seed in (1, 1, 2)
    )
    assert sorted(first.rows.index.tolist()) == list(range(60))
    assert np.array_equal(first.rows.index, again.rows.index)
    assert not np.array_equal(first.rows.index, other.rows.index)
    assert repr(first) == "<4 clients of 15 to 15 rows>"
    assert list(first) == ["client-0", "client-1", "client-2", "client-3"]
    assert len(first["client-0"]) == 15


def test_inputs_by_name_and_in_order_and_an_axis_of_one_more_or_less() -> None:
    image, sound, y = np.zeros((3, 28, 28)), np.zeros((3, 24, 16)), np.arange(3)
    names = [tensor.name for tensor in BOTH.inputs]
    arrays = {"image": image, "sound": sound}
    for x in (arrays, [arrays[name] for name in names]):
        columns = read_columns(BOTH, (x, y), "x")
        assert {name: array.shape for name, array in columns.items()} == {
            **{t.name: (3, *t.shape) for t in BOTH.inputs},
            "target": (3,),
        }


def test_a_table_is_an_input_by_its_features_or_in_its_order() -> None:
    table = Table(rooms_per_household=X[:, 1], median_income=X[:, 0])
    for given in ((table, Y), Table(table, y=Y)):
        assert np.array_equal(read_columns(HOUSES, given, "x")["features"], X)
    (features,) = HOUSES.inputs
    bare = msgspec.structs.replace(
        HOUSES, inputs=(msgspec.structs.replace(features, features=(), units=()),)
    )
    for given in ((table, Y), Table(table, y=Y)):
        assert np.array_equal(read_columns(bare, given, "x")["features"], X[:, ::-1])
    with pytest.raises(
        DataError, match="no array for 'features'; given: rooms_per_household, median_income, odd"
    ):
        read_columns(bare, (Table(table, odd=Y, more=Y), Y), "x")


def test_classes_may_be_given_by_name() -> None:
    columns = read_columns(DIGITS, (np.zeros((2, 28, 28)), ["7", "0"]), "x")
    assert columns["target"].tolist() == [7, 0]


def test_weights_of_rows_are_taken_along() -> None:
    gathered = gather(HOUSES, partition(X, Y, clients=2, weight=np.ones(6)))
    assert gathered.columns["weight"].tolist() == [1] * 6


IMAGES = np.zeros((4, 28, 28))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (IMAGES.reshape(4, 784), np.zeros(4)),
            "c: image has shape (4, 784), the model handwritten_digit takes (rows, 28, 28): "
            "image.reshape(-1, 28, 28)",
        ),
        ((IMAGES, np.zeros((4, 10))), "takes (rows): one-hot? give classes, target.argmax(-1)"),
        ((IMAGES[0], np.zeros(1)), "one row alone? give image[None]"),
        ((IMAGES, np.zeros(3)), "need the same number of rows: image has 4, target has 3"),
        ((IMAGES,), "c: no array for 'target'; given: image; the model handwritten_digit takes"),
        (({"imge": IMAGES}, np.zeros(4)), "no array for 'image'; did you mean imge? given"),
        ((IMAGES, ["7", "a", "0", "1"]), "target has the class 'a'; classes: 0, 1, 2"),
        ((np.array([object()] * 4), np.zeros(4)), "image holds object, expected numbers"),
        (([[1, 2], [3]], np.zeros(2)), "image is no array, its rows differ in length"),
        ((1, 2, 3, 4), "c: 4 arrays, expected (x, y) or (x, y, weight)"),
    ],
)
def test_an_array_that_does_not_fit_is_told_what_does(given: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_columns(DIGITS, given, "c")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([], "there are no clients: give a mapping"),
        ((X, Y), "arrays do not say which client has which row: give a mapping"),
        ({"x": X, "y": Y}, "clients has the arrays x, y and no 'client_id'"),
        ({"x": X, "y": Y, "client_ids": Y}, "no array 'client_id'; did you mean client_ids?"),
        ({"a": (X, Y), "b": (X[:0], Y[:0])}, "b: no rows; leave this client out"),
        ([(X, Y), (X, Y, Y)], "some have 'weight' and some have not"),
        (7, "clients is a int: give a mapping"),
        ((X, Y, Y), "client_id is float64 of shape (6,), expected one whole number or text a row"),
        ((X, Y, [1, 2, 1, 2, 1]), "clients: features has 6 rows, client_id has 5: each row needs"),
        ({"x": X, "y": Y, "client_id": [1] * 7}, "features has 6 rows, client_id has 7"),
        (Clients((X[:3], Y[:3]), partition(X, Y, clients=2).rows, 6),
         "clients: features has 3 rows, partition dealt out 6"),
        ((X, Y, np.array([1, "1", 2, 2, 2, 2], object)), "client_id has 1 as a number and '1' as"),
        ((X, Y, [1, "1", 2, 2, 2, 2]), "client_id has 1 as a number and '1' as text: one client"),
        ((X, Y, np.array(["a", None, "b"] * 2, object)), "client_id: row 1 is None (NoneType)"),
        ((X, Y, ["a", "b", np.nan] * 2), "client_id: row 2 is nan (float), expected one whole"),
        ((X, Y, np.array([1, np.nan] * 3)), "client_id: row 1 is nan (float)"),
    ],
)  # fmt: skip
def test_clients_that_are_none_are_refused(clients: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        gather(HOUSES, clients)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "client"}, "kind client needs client_id="),
        (
            {"kind": "dirichlet", "clients": 2, "labels": X},
            "goes by one label a row, got float64 of shape (6, 2): give labels=",
        ),
        ({"kind": "iid"}, "kind iid needs the number of clients"),
        ({"kind": "iid", "clients": 7}, "6 rows are too few for 7 clients"),
        ({"kind": "odd", "clients": 2}, "odd"),
        ({"kind": "iid", "clients": 2, "alpha": 3}, "kind iid has no use for alpha=, which is of"),
        ({"clients": 2, "labels": Y}, "no use for labels=, which is of kind shards and dirichlet"),
        ({"client_id": [1] * 6, "rows": 2}, "kind client has no use for rows="),
        ({"kind": "shards", "clients": 2, "client_id": [1] * 6}, "no use for client_id="),
        ({"clients": 2, "seed": "a"}, "partition: seed is 'a': give a whole number, 0 or more"),
        ({"clients": 2, "seed": -1}, "partition: seed is -1"),
        ({"client_id": [1] * 5}, "same number of rows: x has 6, y has 6, client_id has 5"),
        ({"kind": "dirichlet", "clients": 2, "labels": Y[:3]}, "y has 6, labels has 3"),
        ({"clients": 2, "weight": Y[:3]}, "y has 6, weight has 3"),
        ({"clients": 2, "weight": 3}, "weight is a int, expected an array of rows"),
    ],
)
def test_a_wrong_partition_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        partition(X, Y, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet", "sample"])
def test_rows_without_a_target_are_not_dropped(kind: Any) -> None:
    with pytest.raises(DataError, match="same number of rows: x has 6, y has 3"):
        partition(X, Y[:3], kind=kind, clients=2)


def test_inputs_by_name_or_in_a_list_are_dealt_out_by_their_rows() -> None:
    for x in ({"image": X, "sound": X}, [X, X]):
        assert partition(x, Y, clients=2).sizes.tolist() == [3, 3]
    with pytest.raises(DataError, match=r"x\['image'\] has 6, x\['sound'\] has 5"):
        partition({"image": X, "sound": X[:5]}, clients=2)


def test_numbers_and_texts_that_differ_are_clients_of_their_own() -> None:
    mixed = np.array([10, "a", 9, 9, "a", 10], object)
    assert list(partition(X, Y, client_id=mixed)) == ["client-10", "client-9", "client-a"]
    numbers = np.array([10, 9, 9, 9, 9, 10], object)
    assert list(partition(X, Y, client_id=numbers)) == ["client-9", "client-10"]


def test_a_partition_by_label_needs_labels() -> None:
    with pytest.raises(ConfigError, match="goes by labels: give y, or labels="):
        partition(X, kind="shards", clients=2)


def test_labels_may_be_texts_and_a_column_of_one_axis_more() -> None:
    texts = np.array(["pen", "abd", "fel"] * 20, object)
    for labels in (texts, texts.tolist(), texts.astype(str), (np.arange(60) % 3)[:, None]):
        dealt = partition(np.zeros((60, 2)), labels=labels, kind="dirichlet", clients=4)
        assert sorted(dealt.rows.index.tolist()) == list(range(60))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.linspace(0, 1, 60), "partition: kind dirichlet draws a mix of classes, got 60 diff"),
        (np.array([None, "a"] * 30), "one label a row, got object of shape"),
    ],
)
def test_what_is_no_label_is_refused_by_dirichlet(labels: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        partition(np.zeros((60, 2)), labels, kind="dirichlet", clients=4)

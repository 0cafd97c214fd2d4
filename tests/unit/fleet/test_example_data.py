"""The data files that come with the examples."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edge_agent.data.dataset import LocalDataset, load_dataset
from models.package.spec import TensorSpec
from tests.unit.edge_agent.training.dataset_files import EXAMPLES, config, make_spec

EXAMPLE_FILES = {
    "comments_youtube.npz": (
        "c474c8b13b3f22a4fb94b6dd60a620451184b9b2f2ed73750006d42c4cea12f1",
        {"x": (1956, 1024), "y": (1956,), "client": (1956,), "client_names": (5,)},
    ),
    "engine_wear.npz": (
        "b1a765cdf07d4f0f9af7b49c5bea44d2eb0c8d90d3ef5e2d1ef933a779158335",
        {"x": (4184, 30, 14), "y": (4184,), "worn": (4184,), "client": (4184,)},
    ),
    "har_watch.npz": (
        "616d98584ea9d811340c0871be0b88f6ebdf0bef642edaf92b32d7521d585ebe",
        {"x": (2369, 100, 6), "y": (2369,), "client": (2369,), "recording": (2369,),
         "side": (2369,)},
    ),
    "heart_hospitals.npz": (
        "bef8b3dc5ffce993c528a70d60251e4dbcbf45c33b8878366d2b3faeb9bde0bb",
        {"x": (920, 13), "y": (920,), "client": (920,), "client_names": (4,)},
    ),
    "housing_california.npz": (
        "869bbfbf0e550d3fb60828a39701291be837f8ad47e566bf4181e112f0e32ae8",
        {"x": (19202, 2), "y": (19202,), "client": (19202,), "client_names": (29,)},
    ),
    "mnist_writers_small.npz": (
        "ac7bfb35e09b3075d64d403d34254ff8b509be08b843327380ac5e8b722b0147",
        {"x": (12622, 28, 28), "y": (12622,), "client": (12622,), "split": (12622,),
         "hsf": (12622,)},
    ),
    "road_traffic.npz": (
        "f623081a5dd5182d5d0f6d7ed416ecea4526b42ff68e8dc5017ceaf723ba9561",
        {"x": (5633, 12, 3), "y": (5633,), "client": (5633,), "client_names": (5,)},
    ),
    "spoken_words.npz": (
        "75c76b978c0c0ef0ed3fce6d65db455b186879b853b55ba24373348142e08026",
        {"x": (1858, 39, 16), "y": (1858,), "client": (1858,)},
    ),
    "spoken_written_digits.npz": (
        "9a7d67d5de545cddce744fb75d90930968df25848efe27ad0b5b60d5f599704f",
        {"image": (1440, 28, 28), "sound": (1440, 24, 16), "y": (1440,), "client": (1440,)},
    ),
    "credit_german.npz": (
        "cd1c149756fcce49a8c3af42359c7a43efc75995dce92a99a4570e24abe296c1",
        {"x": (1000, 43), "y": (1000,), "client": (1000,), "client_names": (7,)},
    ),
    "shakespeare_roles.npz": (
        "297a5ce018f18664de1bb852827f348a11f638fcc9feba64b62cfd72174850c3",
        {"x": (13606, 40), "y": (13606,), "client": (13606,), "client_names": (80,)},
    ),
}  # fmt: skip


def test_every_example_file_is_listed_here_and_documented() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.npz")) == sorted(EXAMPLE_FILES)
    for document in ("README.md", "LICENSES.md"):
        text = (EXAMPLES / document).read_text()
        assert [name for name in EXAMPLE_FILES if name not in text] == []
    readme = (EXAMPLES / "README.md").read_text()
    assert [name for name, (sha256, _) in EXAMPLE_FILES.items() if sha256 not in readme] == []


@pytest.mark.parametrize("name", EXAMPLE_FILES)
def test_example_files_load_without_pickle_and_are_what_their_readme_says(name: str) -> None:
    sha256, shapes = EXAMPLE_FILES[name]
    assert hashlib.sha256((EXAMPLES / name).read_bytes()).hexdigest() == sha256
    with np.load(EXAMPLES / name, allow_pickle=False) as file:
        assert {key: file[key].shape for key in file.files} == shapes


def load_watch() -> LocalDataset:
    classes = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
    spec = make_spec(
        TensorSpec("x", (100, 6)), target=TensorSpec("target", (), "int32", classes=classes)
    )
    return load_dataset(
        config("har_watch.npz", group="recording", normalise="device"), spec, EXAMPLES
    )


def test_the_watch_data_splits_inside_each_recording() -> None:
    data = load_watch()
    with np.load(EXAMPLES / "har_watch.npz") as file:
        recording = file["recording"]
    assert (data.num_train, data.num_test) == (1892, 477)
    for part in np.unique(recording):
        held_out = data.rows[data.test][recording[data.rows[data.test]] == part]
        trained = data.rows[data.train][recording[data.rows[data.train]] == part]
        assert trained.max() < held_out.min(initial=len(recording))
    train = data.part("train")["x"].reshape(-1, 6)
    assert train.mean(0, np.float64) == pytest.approx(np.zeros(6), abs=1e-4)
    assert train.std(0, np.float64) == pytest.approx(np.ones(6), abs=1e-4)

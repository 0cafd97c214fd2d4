"""Layers that stay on the device: kept through restarts, never in an update."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.training.personal_layers import PersonalPart, forget_others, personal_file
from edge_agent.training.result import TrainingResult
from fedge.errors import DataError
from learning.vector.metrics import Sums
from learning.vector.parameters import F32, Layout, ParameterSpec
from models.zoo import load_zoo

INITIAL = np.array([1, 2], np.float32)


def result(*delta: float) -> TrainingResult:
    return TrainingResult(np.array(delta, np.float32), 5, Sums(1.0, 5.0, {}), 3, 0.1)


def theta(*values: float) -> F32:
    return np.array(values, np.float32)


def test_the_program_gets_it_behind_theta_and_the_update_does_not() -> None:
    part = PersonalPart(INITIAL)
    assert part.whole(theta(7, 8, 9)).tolist() == [7, 8, 9, 1, 2]
    kept = part.keep(result(0.5, 0.5, 0.5, 10, 20))
    assert kept.delta.tolist() == [0.5, 0.5, 0.5]
    assert (kept.num_examples, kept.steps) == (5, 3)
    assert part.whole(theta(0, 0, 0)).tolist() == [0, 0, 0, 11, 22]


def test_it_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "personal-ab.npy"
    PersonalPart(INITIAL, path).keep(result(0, 1, 1))
    assert PersonalPart(INITIAL, path).vector.tolist() == [2, 3]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_nobody_else_may_read_it_and_a_full_disk_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "personal-ab.npy"
    part = PersonalPart(INITIAL, path)
    part.keep(result(0, 1, 1))
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.mkdir()  # in the way, as a full disk would be
    with pytest.raises(DataError, match="the personal layers cannot be kept"):
        part.keep(result(0, 5, 5))
    assert part.vector.tolist() == [2, 3]


def test_a_model_without_one_writes_nothing(tmp_path: Path) -> None:
    part = PersonalPart(np.zeros(0, np.float32), tmp_path / "personal-ab.npy")
    given, before = result(1, 2), theta(4, 5)
    assert part.whole(before) is before
    assert part.keep(given) is given
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "personal-ab.npy"
    path.write_bytes(damage)
    with pytest.raises(DataError, match=r"personal-ab.npy: .*delete the file to learn it anew"):
        PersonalPart(INITIAL, path)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "personal-ab.npy"
    np.save(path, np.zeros(3, np.float32))
    with pytest.raises(DataError, match="3 numbers, expected 2; delete the file"):
        PersonalPart(INITIAL, path)


def test_another_package_of_the_layout_goes_on_with_it_and_another_layout_does_not(
    tmp_path: Path,
) -> None:
    spec = load_zoo("house_price").spec
    narrow, wide = (Layout((ParameterSpec("head/kernel", (size,)),)) for size in (2, 3))
    own = replace(spec, personal=narrow)
    path = personal_file(tmp_path, own)
    assert path == personal_file(tmp_path, replace(own, source="exported again"))
    assert path != personal_file(tmp_path, replace(own, personal=wide))
    assert path != personal_file(tmp_path, replace(own, layout=wide))


def test_what_was_learned_for_other_layouts_is_deleted(tmp_path: Path) -> None:
    for name in ("personal-ab.npy", "personal-cd.npy", "other.npy"):
        (tmp_path / name).touch()
    (tmp_path / "personal-in-the-way.npy").mkdir()
    forget_others(tmp_path / "personal-ab.npy")
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == ["other.npy", "personal-ab.npy", "personal-in-the-way.npy"]

"""Memory estimates of training, before a program is loaded."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.data.config import DataConfig
from edge_agent.data.size import data_bytes
from edge_agent.training.memory_estimate import Need, estimate, megabytes, shortage
from fedge.errors import ModelError
from learning.vector.parameters import Layout, ParameterSpec
from models.inspect.flatbuffer import tensor_bytes
from models.zoo import load_zoo

MB = 1_000_000


def test_the_memory_estimate_grows_with_the_vector() -> None:
    spec, program = (package := load_zoo("house_price")).spec, package.program
    small = estimate(spec, program, 0)
    large = msgspec.structs.replace(spec, layout=Layout((ParameterSpec("w", (1_000_000,)),)))
    assert estimate(large, program, 0).total - small.total >= 8 * 4 * 999_000


def test_compressed_arrays_count_with_their_uncompressed_size(tmp_path: Path) -> None:
    spec = load_zoo("house_price").spec
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((100_000, 2), np.float32))
    assert (tmp_path / "data.npz").stat().st_size < 10_000
    assert data_bytes(DataConfig(path="data.npz"), spec, tmp_path, None) >= 2 * 800_000
    assert data_bytes(DataConfig(path="missing.npz"), spec, tmp_path, None) == 0
    assert data_bytes(DataConfig(path="missing.csv"), spec, tmp_path, None) == 0
    assert data_bytes(DataConfig(path="no*.csv"), spec, tmp_path, None) == 0


def test_a_text_counts_with_its_numbers_and_not_with_its_text(tmp_path: Path) -> None:
    spec = load_zoo("house_price").spec
    (tmp_path / "data.csv").write_text(f"2026-01-01T00:00:00,1,2,3,{'x' * 80}\n" * 100_000)
    config = DataConfig(path="data.csv")
    need = data_bytes(config, spec, tmp_path, None)
    assert 100_000 * 3 * 4 < need < (tmp_path / "data.csv").stat().st_size
    measured = msgspec.structs.replace(config, normalise="device")
    assert data_bytes(measured, spec, tmp_path, None) - need == 100_000 * 3 * 8
    both = msgspec.structs.replace(config, path="da*.csv")
    (tmp_path / "data2.csv").write_bytes((tmp_path / "data.csv").read_bytes())
    assert data_bytes(both, spec, tmp_path, None) == need + 100_000 * (3 * 4 + 16)


def test_tensor_sizes_are_read_from_the_program() -> None:
    package = load_zoo("handwritten_digit_cnn")
    rows = package.spec.batch_size
    first_layer = rows * 28 * 28 * 8 * 4  # its activations alone, with 8 filters or more
    assert first_layer < tensor_bytes(package.program) < 100 * MB


def test_a_damaged_program_gives_an_estimate_or_a_model_error() -> None:
    good = load_zoo("house_price").program
    spec = load_zoo("house_price").spec
    rng = random.Random(0)
    for _ in range(500):
        data = bytearray(good[: rng.choice([len(good), rng.randrange(len(good))])])
        for _ in range(rng.randrange(8)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert tensor_bytes(bytes(data)) >= 0
        except ModelError:
            assert estimate(spec, bytes(data), 0).total > 0


def test_missing_memory_is_reported_with_its_parts() -> None:
    need = Need(60 * MB, 20 * MB)
    too_much = shortage(need, resident=50 * MB, available=500 * MB, ceiling=100 * MB)
    assert too_much == (
        "about 80 MB (model 60 MB, data 20 MB) above the 50 MB in use is more than "
        "max_memory_bytes (100 MB)"
    )
    too_little = shortage(need, resident=50 * MB, available=70 * MB, ceiling=None)
    assert too_little == "about 80 MB (model 60 MB, data 20 MB) is needed, 70 MB is available"


def test_unknown_available_memory_is_not_an_error() -> None:
    need = Need(60 * MB, 20 * MB)
    assert not shortage(need, resident=None, available=None, ceiling=MB)
    assert not shortage(need, resident=10 * MB, available=80 * MB, ceiling=90 * MB)


_TRAIN = """
import sys, numpy as np
from learning.algorithms.training import TrainingPlan
from edge_agent import worker, service
from edge_agent.training.trainer import train
from learning.codecs.feedback import encode_with_feedback
from learning.codecs.registry import CODECS
from models.runtime.program import Program
from models.zoo import load_zoo
package = load_zoo(sys.argv[1])
def peak():
    lines = open("/proc/self/status").readlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
before = peak()
program = Program(package.program, package.spec)
rows = {t.name: np.zeros((64, *t.shape), t.dtype) for t in package.spec.columns}
rng = np.random.default_rng(0)
plan = TrainingPlan(optimizer="adam", max_steps=4)
result = train(program, package.initial, rows, plan, rng)
program.evaluate(package.initial, rows)
encode_with_feedback(CODECS.make("int8"), result.delta, None, 0, rng)
print(peak() - before)
"""


@pytest.mark.parametrize("name", ["wearable_activity", "handwritten_digit_cnn"])
def test_training_stays_within_the_memory_estimate(name: str) -> None:
    spec, program = (package := load_zoo(name)).spec, package.program
    need = estimate(spec, program, 0)
    command = [sys.executable, "-P", "-c", _TRAIN, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    taken = int(done.stdout)
    assert taken <= need.total, f"{megabytes(taken)} taken, {need}"
    assert taken >= need.total / 5, f"{megabytes(taken)} taken, {need}: far too careful"

"""Costs of programs, compared with hand counts and with a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedge.errors import ModelError
from models.cli.main import cli
from models.inspect.cost import AGENT_BYTES, DEVICES, analyse, epoch_seconds, memory_bytes
from models.inspect.flatbuffer import read
from models.inspect.operators import Kind
from models.zoo import load_zoo, zoo_names

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", zoo_names())
def test_every_program_of_the_zoo_is_analysed(name: str) -> None:
    package = load_zoo(name)
    file = read(package.program)
    assert set(file.signatures) == {"gradient", "evaluate", "predict"}
    assert all(graph.operators for graph in file.subgraphs)
    theta = (package.spec.whole_size,)
    for number in file.signatures.values():  # the others are conditions and bodies of loops
        graph = file.subgraphs[number]
        assert theta in [graph.tensors[index].shape for index in graph.inputs]


def test_flops_of_matrix_products_match_a_hand_count() -> None:
    """784-200-200-10, 32 rows: forward, and backward twice but to the input."""
    layers = [784 * 200, 200 * 200, 200 * 10]
    products = 2 * 32 * sum(layers)
    costs = analyse(load_zoo("handwritten_digit").program)
    assert products < costs["predict"].flops < products + 32 * 5000
    backward = products + 2 * 32 * sum(layers[1:])
    assert products + backward < costs["gradient"].flops < 1.02 * (products + backward)


def test_flops_of_a_convolution_match_a_hand_count() -> None:
    """24 filters of 21 steps of 6 channels at 27 places, 32 rows, forward."""
    convolution = 2 * 32 * 27 * 24 * (21 * 6)
    flops = analyse(load_zoo("wearable_activity").program)["predict"].flops
    assert convolution < flops < 1.02 * convolution


@pytest.mark.parametrize("name", zoo_names())
def test_the_arena_holds_the_live_tensors(name: str) -> None:
    package = load_zoo(name)
    costs = analyse(package.program)
    file = read(package.program)
    signatures = {number for name, number in file.signatures.items() if name != "gradient"}
    graphs = [graph for number, graph in enumerate(file.subgraphs) if number not in signatures]
    every = sum(64 + 4 * prod(tensor.shape) for graph in graphs for tensor in graph.tensors)
    gradient = costs["gradient"]
    assert 2 * 4 * package.spec.whole_size <= gradient.arena_bytes <= every
    assert gradient.arena_bytes >= costs["predict"].arena_bytes
    assert gradient.flops > costs["evaluate"].flops > costs["predict"].flops


def test_epoch_time_grows_with_rows_and_slower_boards() -> None:
    package = load_zoo("wearable_activity")
    costs = analyse(package.program)
    times = [epoch_seconds(package.spec, costs, 320, board) for board in DEVICES.values()]
    assert times == sorted(times, reverse=True)
    whole = epoch_seconds(package.spec, costs, 3200, DEVICES["pi-4"])
    assert whole == pytest.approx(10 * epoch_seconds(package.spec, costs, 320, DEVICES["pi-4"]))


_CHILD = """
import sys
import numpy as np
from edge_agent import service
from edge_agent.training.trainer import train
from learning.algorithms.training import TrainingPlan
from models.runtime.program import Program
from models.zoo import load_zoo
package = load_zoo(sys.argv[1])
spec = package.spec
program = Program(package.program, spec, frozen=package.frozen)
rows = {t.name: np.zeros((1000, *t.shape), t.dtype) for t in spec.columns}
theta = np.concatenate([package.initial, package.personal])
program.gradient(theta, rows)
program.evaluate(theta, rows)
print([int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM")][0])
"""


@pytest.mark.parametrize("name", ["house_price", "handwritten_digit_cnn"])
def test_the_memory_estimate_is_near_the_measured_memory(name: str) -> None:
    package = load_zoo(name)
    estimate = memory_bytes(package.spec, analyse(package.program), 1000)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, name],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    measured = int(done.stdout)
    assert 0.6 * measured < estimate < 1.6 * measured
    assert estimate > AGENT_BYTES


def _damaged() -> list[bytes]:
    program = load_zoo("house_price").program
    rng = np.random.default_rng(1)
    files = [program[:length] for length in range(8, len(program), 97)]
    for _ in range(300):
        changed = bytearray(program)
        for place in rng.integers(0, len(program), 8):
            changed[place] = rng.integers(256)
        files.append(bytes(changed))
    return [b"", b"TFL3", *files]


def test_a_damaged_file_is_a_model_error_of_one_line() -> None:
    """A file may also stay readable: not every byte matters."""
    problems = [problem for problem in map(_problem, _damaged()) if problem]
    assert len(problems) > 100
    for problem in problems:
        assert problem.startswith("the program is damaged")
        assert "\n" not in problem


def _problem(data: bytes) -> str:
    try:
        analyse(data)
    except ModelError as error:
        return str(error)
    return ""


def test_inspect_estimates_training_on_a_board() -> None:
    arguments = ["inspect", "wearable_activity", "--device", "pi-zero-2w", "--rows", "5000"]
    text = CliRunner().invoke(cli, arguments)
    assert text.exit_code == 0, text.output
    assert "training on pi-zero-2w, 5,000 rows" in text.output
    assert "MB of 537 MB, the whole agent" in text.output
    report = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert report["costs"]["gradient"]["operators"]["BATCH_MATMUL"] >= 4
    assert report["estimate"]["rows"] == 5000
    assert 0 < report["estimate"]["epoch_s"] < 60


def test_inspect_measures_this_machine() -> None:
    result = CliRunner().invoke(cli, ["inspect", "house_price", "--device", "this", "--json"])
    report = json.loads(result.output)
    assert report["estimate"]["epoch_s"] > 0
    assert report["estimate"]["matrix_flops"] > 1e8


def test_an_unknown_device_is_rejected_with_the_known_ones() -> None:
    result = CliRunner().invoke(cli, ["inspect", "house_price", "--device", "pi-9"])
    assert result.exit_code == 2
    assert "pi-zero-2w" in result.output


def test_kinds_have_the_schemas_numbers() -> None:
    """Compares a sample of the numbers."""
    assert (Kind.ADD, Kind.WHILE, Kind.BATCH_MATMUL, Kind.SIGN) == (0, 119, 126, 158)

"""Memory of a program over many calls, on both runtimes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedge.system import resident_bytes, return_freed_memory
from models.package.package import ModelPackage
from models.runtime import main_subgraph
from models.runtime.interpreters import find_runtime
from models.runtime.program import Program
from tests.rows import labelled

CALLS = 10_000
#: tflite-runtime 2.14 loses 1,739 bytes at each `get_signature_runner`: 17 MB in all calls.
TOLERATED_BYTES = 1 << 20
THETA = np.array([0.5, -0.25, 2.0], np.float32)
ROWS = labelled({"features": np.ones((3, 2), np.float32)}, np.ones(3, np.float32))


def growth(call: Callable[[], object], calls: int) -> int:
    """Returns the bytes of resident memory that `calls` calls added."""
    for _ in range(100):  # arenas, caches
        call()
    gc.collect()
    return_freed_memory()
    before = resident_bytes()
    for _ in range(calls):
        call()
    gc.collect()
    return_freed_memory()
    after = resident_bytes()
    assert before is not None
    assert after is not None
    return after - before


def test_ten_thousand_evaluations_leave_nothing_behind(package: ModelPackage, runtime: str) -> None:
    program = Program(package.program, package.spec, runtime=runtime)
    assert growth(lambda: program.evaluate(THETA, ROWS), CALLS) < TOLERATED_BYTES


def test_training_and_evaluating_in_turn_leave_nothing_behind(
    package: ModelPackage, runtime: str
) -> None:
    program = Program(package.program, package.spec, runtime=runtime)

    def one_round() -> None:
        program.gradient(THETA, ROWS)
        program.evaluate(THETA, ROWS)
        program.predict(THETA, ROWS)

    assert growth(one_round, CALLS // 4) < TOLERATED_BYTES


def test_a_program_asks_for_each_runner_once(
    package: ModelPackage, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted_runners(runtime, monkeypatch)
    program = Program(package.program, package.spec, runtime=runtime)
    for _ in range(3):
        program.gradient(THETA, ROWS)
        program.evaluate(THETA, ROWS)
        program.predict(THETA, ROWS)
    assert len(asked) == len(set(asked)) == 3 * len(package.spec.batch_sizes)


def test_an_interpreter_that_refuses_the_fast_path_trains_through_its_runner(
    package: ModelPackage, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {name: np.repeat(array, 100, 0)[:256] for name, array in ROWS.items()}
    fast = Program(package.program, package.spec, runtime=runtime).gradient(THETA, whole)

    def refuse() -> None:
        raise RuntimeError("There is at least 1 reference to internal data")

    monkeypatch.setattr(main_subgraph, "_always_safe", refuse)
    asked = counted_runners(runtime, monkeypatch)
    program = Program(package.program, package.spec, runtime=runtime)
    for _ in range(3):
        slow = program.gradient(THETA, whole)
    assert np.array_equal(slow.vector, fast.vector)
    assert slow.sums == fast.sums
    assert len(asked) == len(set(asked))


def counted_runners(runtime: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the list of signatures that runners are asked for from now on."""
    interpreter: Any = find_runtime(runtime)[0]
    get_runner = interpreter.get_signature_runner
    asked: list[str] = []

    def counted(self: Any, name: str) -> Any:
        asked.append(name)
        return get_runner(self, name)

    monkeypatch.setattr(interpreter, "get_signature_runner", counted)
    return asked

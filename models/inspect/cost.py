"""Estimates the cost of a program from its file: operators, arithmetic, memory, time on a device.

Only the device `this` is measured by running the program. Estimates are for planning: for other
devices they may be off by a factor of two.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from fedge.errors import ModelError
from models.inspect.flatbuffer import File, Operator, Subgraph, read
from models.inspect.operators import DATA_MOVEMENT, NAMES, Kind
from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.runtime.program import Program
from models.runtime.rows import Rows

#: Memory of the agent's process, connected with TLS and with an interpreter, without a model:
#: measured on 64-bit x86, tflite-runtime (benchmarks/README.md; 6 MB less without TLS).
AGENT_BYTES = 55 << 20
#: Vectors of θ's length outside the interpreter: fetched, trained, gradient, two of the optimizer,
#: delta, residual, update frame.
_VECTORS = 8
#: Copies of the data: as stored, and as the program takes them.
_COPIES = 2
#: Time to write a number, in additions and multiplications.
_WRITE_FLOPS = 10
#: Overhead of a call in Python and numpy, in operators.
_CALL_OPERATORS = 50


@dataclass(frozen=True)
class Device:
    """Speed and memory of a device, for estimates.

    Attributes:
        flops: multiplications and additions per second in matrix products, on one core.
        operator_s: overhead of an operator: 0.2 µs on 64-bit x86, scaled by clock for boards.
        memory_bytes: memory of the board.
        source: source of the numbers.
    """

    flops: float
    operator_s: float
    memory_bytes: int
    source: str


_XNNPACK = "XNNPACK's README: MobileNet v1 (1.14 GFLOP) in"
#: Boards by name; where a board has several memory sizes, the smallest.
DEVICES = {
    "pi-zero-2w": Device(1.8e9, 3.4e-6, 512 << 20, "as pi-3, by its clock: 1.0 instead of 1.4 GHz"),
    "pi-3": Device(2.5e9, 2.4e-6, 1 << 30, f"{_XNNPACK} 115 ms on four cores of a 3B+"),
    "pi-4": Device(3.8e9, 1.2e-6, 1 << 30, f"{_XNNPACK} 75 ms on four cores"),
    "pi-5": Device(12e9, 0.6e-6, 2 << 30, "as pi-4, by clock (2.4 GHz) and two FMA pipes for one"),
}
#: Name of the machine that this process runs on.
THIS = "this"


@dataclass(frozen=True)
class Cost:
    """Cost of one call of a signature.

    Attributes:
        operators: number of operators of each kind, including those in loops; most frequent first.
        executed: operator executions; operators in loops count once per iteration.
        flops: multiplications and additions; an elementary function such as exp counts as one.
        numbers: numbers that operators write.
        arena_bytes: largest size of live tensors, without constants. The interpreter takes more:
            its memory plan is not optimal.
    """

    operators: dict[str, int]
    executed: int
    flops: int
    numbers: int
    arena_bytes: int

    def seconds(self, device: Device) -> float:
        """Returns the time of one call."""
        work = self.flops + _WRITE_FLOPS * self.numbers
        operators = self.executed + _CALL_OPERATORS
        return work / device.flops + operators * device.operator_s


def analyse(program: bytes) -> dict[str, Cost]:
    """Returns the cost of each signature.

    Raises:
        ModelError: the file is damaged.
    """
    file = read(program)
    known: dict[int, Cost | None] = {}
    costs = {name: _cost(file, index, known) for name, index in file.signatures.items()}
    return {name: replace(cost, operators=_sorted(cost.operators)) for name, cost in costs.items()}


def _sorted(operators: dict[str, int]) -> dict[str, int]:
    return dict(sorted(operators.items(), key=lambda item: (-item[1], item[0])))


def memory_bytes(spec: ModelSpec, costs: dict[str, Cost], rows: int) -> int:
    """Returns the memory of the whole agent while it trains on `rows` rows."""
    numbers = _VECTORS * spec.whole_size + 2 * spec.frozen
    arenas = sum(cost.arena_bytes for name, cost in costs.items() if not name.startswith("predict"))
    row = sum(4 * prod(tensor.shape) for tensor in spec.columns)
    return AGENT_BYTES + 4 * numbers + arenas + _COPIES * rows * row


def epoch_seconds(spec: ModelSpec, costs: dict[str, Cost], rows: int, device: Device) -> float:
    """Returns the time of one pass over `rows` rows, on one core."""
    return -(-rows // spec.batch_size) * costs["gradient"].seconds(device)


def measured_epoch_seconds(package: ModelPackage, rows: int, runtime: str | None) -> float:
    """Measures the time of one pass over `rows` rows by running the program for 0.25 s."""
    spec = package.spec
    program = Program(package.program, spec, frozen=package.frozen, runtime=runtime)
    batch: Rows = {t.name: np.zeros((spec.batch_size, *t.shape), t.dtype) for t in spec.columns}
    theta = package.whole(package.initial)
    program.gradient(theta, batch)
    started = time.perf_counter()
    steps = 0
    while time.perf_counter() - started < 0.25 or steps < 3:
        program.gradient(theta, batch)
        steps += 1
    return (time.perf_counter() - started) / steps * -(-rows // spec.batch_size)


def matrix_flops() -> float:
    """Measures how many multiplications and additions numpy does per second in matrix products."""
    side = 384
    left, right = np.ones((2, side, side), np.float32)
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        np.matmul(left, right)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def _cost(file: File, index: int, known: dict[int, Cost | None]) -> Cost:
    """Returns the cost of a subgraph with its loops; `known` holds None for those in progress."""
    if index in known:
        cost = known[index]
        if cost is None:
            raise _DamagedLoopError
        return cost
    known[index] = None
    graph = file.subgraphs[index]
    kinds = Counter(NAMES.get(operator.kind, str(operator.kind)) for operator in graph.operators)
    cost = Cost(
        operators=kinds,
        executed=len(graph.operators),
        flops=sum(_flops(graph, operator) for operator in graph.operators),
        numbers=sum(prod(graph.tensors[i].shape) for op in graph.operators for i in op.outputs),
        arena_bytes=_arena_bytes(graph),
    )
    for operator in graph.operators:
        if operator.kind == Kind.WHILE:
            cost = _with_loop(cost, file, operator, known)
    known[index] = cost
    return cost


class _DamagedLoopError(ModelError):
    """Raised for a loop without a body, or inside itself."""

    def __init__(self) -> None:
        super().__init__("the program is damaged, or not a TFLite file: a loop without a body")


def _with_loop(cost: Cost, file: File, operator: Operator, known: dict[int, Cost | None]) -> Cost:
    """Returns `cost` plus that of a loop's iterations."""
    if operator.options is None:
        raise _DamagedLoopError
    condition, body = (operator.options.number(field, "<i") for field in (0, 1))
    if not all(0 <= index < len(file.subgraphs) for index in (condition, body)):
        raise _DamagedLoopError
    iterations, inner = _iterations(file.subgraphs[condition]), _cost(file, body, known)
    return Cost(
        operators=Counter(cost.operators) + Counter(inner.operators),
        executed=cost.executed + iterations * inner.executed,
        flops=cost.flops + iterations * inner.flops,
        numbers=cost.numbers + iterations * inner.numbers,
        arena_bytes=cost.arena_bytes + inner.arena_bytes,
    )


def _iterations(condition: Subgraph) -> int:
    """Returns the limit of a loop that counts from 0 to a constant, as the exporter's; else 1."""
    for operator in condition.operators:
        if operator.kind == Kind.LESS and len(operator.inputs) == 2 and operator.inputs[1] >= 0:
            limit = condition.tensors[operator.inputs[1]].constant
            if len(limit) == 4:
                return max(0, int.from_bytes(limit, "little", signed=True))
    return 1


def _flops(graph: Subgraph, operator: Operator) -> int:
    if operator.kind in DATA_MOVEMENT or not operator.outputs:
        return 0
    shapes = [() if index < 0 else graph.tensors[index].shape for index in operator.inputs]
    written = prod(graph.tensors[operator.outputs[0]].shape)
    match operator.kind:
        case Kind.BATCH_MATMUL:
            is_transposed = operator.options is not None and operator.options.number(0, "<b")
            return 2 * written * shapes[0][-2 if is_transposed else -1]
        case Kind.FULLY_CONNECTED:
            return 2 * written * shapes[1][-1] + _bias(operator, written)
        case Kind.CONV_2D:
            return 2 * written * prod(shapes[1][1:]) + _bias(operator, written)
        case Kind.DEPTHWISE_CONV_2D:
            return 2 * written * prod(shapes[1][1:3]) + _bias(operator, written)
        case Kind.TRANSPOSE_CONV:  # each input number times each tap and filter
            return 2 * prod(shapes[2]) * prod(shapes[1][:3])
        case Kind.SUM | Kind.MEAN | Kind.REDUCE_MAX | Kind.REDUCE_MIN | Kind.REDUCE_PROD:
            return prod(shapes[0])
        case Kind.ADD_N:
            return written * (len(shapes) - 1)
    return written


def _bias(operator: Operator, written: int) -> int:
    return written if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else 0


def _arena_bytes(graph: Subgraph) -> int:
    """Returns the largest size of live tensors while an operator runs."""
    last = dict.fromkeys(graph.inputs, -1)
    born = dict.fromkeys(graph.inputs, 0)
    for step, operator in enumerate(graph.operators):
        for index in operator.outputs:
            born.setdefault(index, step)
            last.setdefault(index, step)
        for index in operator.inputs:
            last[index] = step
    for index in (*graph.inputs, *graph.outputs):  # both are live until the end
        last[index] = len(graph.operators)
    change = [0] * (len(graph.operators) + 2)
    for index, step in born.items():
        tensor = graph.tensors[index]
        size = 0 if tensor.constant else tensor.bytes
        change[step] += size
        change[max(last[index], step) + 1] -= size
    return max(int(total) for total in np.cumsum(change))

"""Vectorized program: gradients of a cohort of simulated agents in one call, in numpy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fedge.errors import ModelError
from learning.vector.parameters import F32
from models.inspect.flatbuffer import read
from models.package.signatures import TensorTypes, expected_signatures, signature_name
from models.package.spec import ModelSpec
from models.runtime.rows import Array, plan_calls
from models.vectorized.axes import FixedBatchError, Rows, UnsupportedError
from models.vectorized.graph import Graph, read_graph
from models.vectorized.plan import Plan, Wanted
from models.vectorized.sums import AgentSums, Gradients, Measured, weighted

#: Memory of the arrays of one pass: they should stay in a core's cache.
_PASS_BYTES = 2 << 20
_MAX_AGENTS = 1024
#: Rows of an agent in one call, at most this many times those of the program.
_MAX_BATCHES = 32
#: Plans that are kept, each with its memory: the last that were used.
_MAX_PLANS = 24
#: Memory that kept plans may have; the plan in use stays whatever its size.
_MAX_PLAN_BYTES = 256 << 20
#: Agents of the plans that show whether a program runs: one agent's arrays have more views.
_TRIED = 2
#: Inputs without an axis of rows.
_PARAMETERS = frozenset({"theta", "frozen"})


class VectorizedProgram:
    """Program that takes the rows of many agents at a time.

    One instance serves one thread at a time: it keeps the memory of its calls.

    Args:
        data: content of the .tflite file.
        spec: the program's spec.
        frozen: float32, shape (spec.frozen,): numbers of frozen layers.
        any_rows: whether to run with the number of rows given, whatever the program was made for;
            else, and where that is impossible, rows are padded as `Program` does.

    Attributes:
        spec: the program's spec.
        any_rows: whether any number of rows takes one call without padding.

    Raises:
        UnsupportedError: names the operator, or the property of the model, that only an interpreter
            can run.
        ModelError: the program is damaged, or does not fit its spec.
    """

    def __init__(
        self, data: bytes, spec: ModelSpec, *, frozen: F32 | None = None, any_rows: bool = True
    ) -> None:
        if spec.stochastic:
            raise UnsupportedError(f"{spec.name} draws random numbers: it runs on an interpreter")
        count = 0 if frozen is None else frozen.size
        if count != spec.frozen:
            raise ModelError(f"{spec.name} needs {spec.frozen} frozen numbers, given: {count}")
        self.spec = spec
        self._constants: dict[str, Array] = {} if frozen is None else {"frozen": frozen}
        self._ranks = {tensor.name: len(tensor.shape) + 1 for tensor in spec.columns}
        self._ranks |= {"theta": 1, "frozen": 1, "weight": 1}
        file = read(data)
        expected = expected_signatures(spec)
        self._graphs = {name: read_graph(file, name) for name in expected}
        for name, (inputs, outputs) in expected.items():
            graph = self._graphs[name]
            _compare(f"{name} input", inputs, graph, graph.inputs)
            _compare(f"{name} output", outputs, graph, graph.outputs)
        self._plans: OrderedDict[object, Plan] = OrderedDict()
        self._bytes: dict[object, int] = {}
        self.any_rows = any_rows and not spec.tracked and spec.batch_size > 1 and self._follows()
        block = _Block(0, spec.batch_size, spec.batch_size, spec.batch_size)
        for kind in ("gradient", "evaluate"):
            self._plan(_Call(kind, block, frozenset(), self._outputs(kind)), _TRIED)

    def gradient(
        self,
        theta: F32,
        rows: Mapping[str, Array],
        weight: F32 | None = None,
        *,
        metrics: bool = True,
        out: F32 | None = None,
    ) -> Gradients:
        """Returns each agent's gradient of the weighted mean loss over its rows.

        Args:
            theta: float32, shape (spec.whole_size,) for all agents, or (A, spec.whole_size).
            rows: an array of shape (A, B, *shape) per column of the spec, or (B, *shape) for all
                agents; any B ≥ 1.
            weight: float32, shape (A, B) or (B,); 0 for padding; None: every row weighs 1.
            metrics: whether to compute `totals`; they are empty otherwise.
            out: float32, shape (A, spec.whole_size), for the gradients: large ones take longer into
                new memory.

        Raises:
            ModelError: an array does not fit the spec.
            UnsupportedError: the model needs all rows in one call of a fixed number
                (BatchNormalization), and B is another.
        """
        agents, count = self._check(theta, rows, weight)
        shape = (agents, self.spec.whole_size)
        vector = np.empty(shape, np.float32) if out is None else out
        if vector.shape != shape or vector.dtype != np.float32:
            raise ModelError(
                f"out is {vector.dtype} of {vector.shape}, expected float32 of {shape}"
            )
        sums = AgentSums(self.spec, agents, weight, metrics=metrics)
        blocks = list(self._blocks(count, in_one=bool(self.spec.tracked)))
        outputs = self._outputs("gradient", metrics=metrics)
        for block in blocks:
            part = sums.weights(block.start, block.rows)
            inputs = self._inputs(block, theta, rows, weight)
            into = vector if len(blocks) == 1 else None
            for chosen, found in self._run("gradient", block, inputs, outputs, agents, into):
                own = part[chosen]
                if "gradient" not in found:
                    pass  # it is in its place
                elif len(blocks) == 1:
                    vector[chosen] = found["gradient"]
                elif block.start == 0:
                    vector[chosen] = weighted(found["gradient"], own)
                else:
                    vector[chosen] += weighted(found["gradient"], own)
                sums.add(chosen, own, found, found["loss"] * own)
        if len(blocks) > 1:
            vector /= np.where(sums.weight > 0, sums.weight, 1).astype(np.float32)[:, None]
        if not sums.weight.all():
            vector[sums.weight == 0] = 0
        return Gradients(sums.loss, sums.weight, sums.totals, vector)

    def evaluate(
        self, theta: F32, rows: Mapping[str, Array], weight: F32 | None = None
    ) -> Measured:
        """Returns the sums over each agent's rows; arguments as for `gradient`."""
        agents, count = self._check(theta, rows, weight)
        sums = AgentSums(self.spec, agents, weight, metrics=True)
        outputs = self._outputs("evaluate")
        for block in self._blocks(count):
            part = sums.weights(block.start, block.rows)
            inputs = self._inputs(block, theta, rows, weight)
            for chosen, found in self._run("evaluate", block, inputs, outputs, agents):
                sums.add(chosen, part[chosen], found, found["loss_sum"])
        return Measured(sums.loss, sums.weight, sums.totals)

    def agents_per_call(self, rows: int, *, shared: bool = False) -> int:
        """Returns how many agents one pass over the operators takes, at so many rows each.

        Their arrays should stay in a core's cache; a call with more agents is several passes.

        Args:
            rows: of an agent.
            shared: whether all agents have one θ.
        """
        names = frozenset({"theta"} if shared else ())
        block = next(self._blocks(rows))
        return self._chunk(_Call("gradient", block, names, self._outputs("gradient")))

    def _outputs(self, kind: str, *, metrics: bool = True) -> tuple[str, ...]:
        names = ("gradient", "loss") if kind == "gradient" else ("loss_sum",)
        return (*names, *(metric.name for metric in self.spec.metrics if metrics))

    def _follows(self) -> bool:
        """Returns whether the axis of rows is known everywhere: tried with two other numbers."""
        self.any_rows = True
        size = self.spec.batch_size
        try:
            for kind in ("gradient", "evaluate"):
                for rows in (1, size + 1):
                    block = _Block(0, rows, rows, size)
                    self._plan(_Call(kind, block, frozenset(), self._outputs(kind)), _TRIED)
        except FixedBatchError:
            return False
        return True

    def _check(self, theta: F32, rows: Mapping[str, Array], weight: F32 | None) -> tuple[int, int]:
        """Returns the numbers of agents and of rows of each."""
        size = self.spec.whole_size
        if theta.dtype != np.float32 or theta.shape[-1:] != (size,) or theta.ndim > 2:
            raise ModelError(
                f"θ is {theta.dtype} of shape {theta.shape}, expected float32 of ({size},) or "
                f"(agents, {size})"
            )
        leading: dict[str, tuple[int, ...]] = {}
        for tensor in self.spec.columns:
            if tensor.name not in rows:
                raise ModelError(
                    f"{self.spec.name} needs the array {tensor.name!r}; given: {', '.join(rows)}"
                )
            shape = rows[tensor.name].shape
            leading[tensor.name] = shape[: len(shape) - len(tensor.shape)]
            if shape[len(leading[tensor.name]) :] != tensor.shape:
                raise ModelError(
                    f"{tensor.name!r} has shape {shape}, expected (agents, rows, *{tensor.shape})"
                )
        if weight is not None:
            leading["weight"] = weight.shape
        if not all(1 <= len(shape) <= 2 for shape in leading.values()):
            raise ModelError(f"arrays need axes of agents and rows in front; they have {leading}")
        counts = {shape[-1] for shape in leading.values()}
        agents = {shape[0] for shape in leading.values() if len(shape) == 2}
        agents.update(theta.shape[:-1])
        if len(counts) != 1 or len(agents) > 1 or 0 in counts | agents:
            raise ModelError(
                f"the numbers of agents and rows must be the same and above 0: θ {theta.shape}, "
                f"{leading}"
            )
        return (agents.pop() if agents else 1), counts.pop()

    def _blocks(self, count: int, *, in_one: bool = False) -> Iterator[_Block]:
        """Returns the calls that cover the rows of an agent."""
        spec = self.spec
        if self.any_rows:
            largest = max(spec.batch_sizes) * _MAX_BATCHES
            for start in range(0, count, largest):
                rows = min(largest, count - start)
                yield _Block(start, rows, rows, spec.batch_size)
            return
        if in_one and count not in spec.batch_sizes:
            raise UnsupportedError(
                f"{spec.name} has BatchNormalization: steps of {count} rows run on an interpreter, "
                f"of {' or '.join(map(str, spec.batch_sizes))} here"
            )
        for start, rows, size in plan_calls(count, spec.batch_sizes):
            yield _Block(start, rows, size, size)

    def _inputs(
        self, block: _Block, theta: F32, rows: Mapping[str, Array], weight: F32 | None
    ) -> dict[str, Array]:
        """Returns the inputs of a block, padded to its size."""
        found: dict[str, Array] = {"theta": theta, **self._constants}
        stop = block.start + block.rows
        missing = block.size - block.rows
        for tensor in self.spec.columns:
            array = rows[tensor.name]
            at = array.ndim - len(tensor.shape) - 1
            part = array[(*(slice(None),) * at, slice(block.start, stop))]
            if missing:  # copies of the first row, as in `cut_rows`
                part = np.concatenate([part, part.take([0] * missing, axis=at)], axis=at)
            found[tensor.name] = part
        if weight is None:
            own = np.ones(block.rows, np.float32)
        else:
            own = weight[..., block.start : stop]
            empty = own.sum(-1, keepdims=True) == 0
            if empty.any():  # the program divides by the sum; what it finds then is not used
                own = np.where(empty, np.float32(1), own)
        if missing:
            own = np.pad(own, [(0, 0)] * (own.ndim - 1) + [(0, missing)])
        found["weight"] = own
        return found

    def _run(
        self,
        kind: str,
        block: _Block,
        inputs: Mapping[str, Array],
        outputs: tuple[str, ...],
        agents: int,
        vector: F32 | None = None,
    ) -> Iterator[tuple[slice, dict[str, Array]]]:
        """Returns the outputs of a block, for some agents at a time.

        They are the plan's own arrays: to be used before the next are asked for. Gradients may be
        written into `vector` at once, and are then missing.
        """
        shared = frozenset(n for n, array in inputs.items() if array.ndim == self._ranks[n])
        call = _Call(kind, block, shared, outputs)
        ready: set[int] = set()
        given = {name: array for name, array in inputs.items() if name not in shared}
        if vector is not None:
            given["gradient"] = vector
        with np.errstate(all="ignore"):
            for start, size, room in _passes(agents, self._chunk(call)):
                plan = self._plan(call, room)
                chosen = slice(start, start + size)
                if id(plan) not in ready:
                    for name in shared.intersection(plan.inputs):
                        plan.inputs[name][...] = inputs[name]
                    plan.run_shared()
                    ready.add(id(plan))
                lent = {name: array[chosen] for name, array in given.items()}
                lent = {n: array for n, array in lent.items() if plan.can_lend(n, array)}
                for name in plan.inputs.keys() - shared - lent.keys():
                    plan.inputs[name][:size] = inputs[name][chosen]
                plan.run(lent)
                yield (
                    chosen,
                    {
                        name: array[:size] if own else np.broadcast_to(array, (size, *array.shape))
                        for name, (array, own) in plan.outputs.items()
                        if name not in lent
                    },
                )

    def _chunk(self, call: _Call) -> int:
        if call not in self._bytes:
            self._bytes[call] = self._plan(call, 1).bytes
        return max(1, min(_MAX_AGENTS, _PASS_BYTES // self._bytes[call]))

    def _plan(self, call: _Call, agents: int) -> Plan:
        key = (call, agents, self.any_rows)
        plan = self._plans.get(key)
        if plan is not None:
            self._plans.move_to_end(key)
            return plan
        block = call.block
        graph = self._graphs[signature_name(call.kind, block.recorded, self.spec)]
        rows = Rows(block.size, block.recorded, self.any_rows)
        plan = Plan(graph, Wanted(agents, rows, call.shared, call.outputs, _PARAMETERS))
        self._plans[key] = plan
        while len(self._plans) > 1 and (
            len(self._plans) > _MAX_PLANS
            or sum(kept.bytes for kept in self._plans.values()) > _MAX_PLAN_BYTES
        ):
            self._plans.popitem(last=False)
        return plan


@dataclass(frozen=True)
class _Block:
    """Rows of one call: first, number, number with padding, number that the program is for."""

    start: int
    rows: int
    size: int
    recorded: int


@dataclass(frozen=True)
class _Call:
    """What a plan computes: a signature's outputs, and the inputs that all agents share."""

    kind: str
    block: _Block
    shared: frozenset[str]
    outputs: tuple[str, ...]


def _passes(agents: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Returns (first agent, agents, agents of the plan): few plans, and little padding.

    Plans are for `most` agents, or a half, a quarter ... of that.
    """
    start = 0
    while start < agents:
        left = agents - start
        room = most
        while room > left and room // 2 >= 1 and (room // 2 >= left or left < 0.75 * room):
            room //= 2
        yield start, min(room, left), room
        start += room


def _compare(where: str, expected: TensorTypes, graph: Graph, found: Mapping[str, int]) -> None:
    if set(expected) != set(found):
        raise ModelError(
            f"the program does not fit its spec: {where}s are {sorted(found)}, "
            f"the spec needs {sorted(expected)}"
        )
    for name, (shape, dtype) in expected.items():
        number = found[name]
        if (graph.shape(number), graph.dtype(number).name) != (shape, dtype):
            raise ModelError(
                f"the program does not fit its spec: {where} {name!r} is "
                f"{graph.dtype(number).name} {graph.shape(number)}, the spec says {dtype} {shape}"
            )

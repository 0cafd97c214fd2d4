"""Choice of what computes the gradients of a cohort: one vectorized program, or one call an agent.

A vectorized program is used where its gradients agree with those of `Program` and where it takes
less time for an agent: both are tried when a model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from fedge.errors import ModelError
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.runtime.program import Program
from models.runtime.rows import Array
from models.vectorized.axes import UnsupportedError
from models.vectorized.program import VectorizedProgram
from models.vectorized.sums import Gradients, Measured

__all__ = [
    "Gradients",
    "Measured",
    "UnsupportedError",
    "VectorizedProgram",
    "check_kernel",
    "choose_kernel",
    "kernel_reason",
]

#: Agents of a check: their gradients are computed one by one as well.
_CHECKED = 3
#: Calls of a measurement, of which the fastest counts.
_TRIES = 3
#: Agents that a measurement calls the interpreter for.
_ALONE = 8
#: Relative spread of the θ that agents are given when all start from one.
_SPREAD = 0.01

#: (package digest, rows) -> kernel, and why it is used or not.
_CHOICES: dict[tuple[str, int], tuple[VectorizedProgram | None, str]] = {}


def check_kernel(
    kernel: VectorizedProgram,
    program: Program,
    theta: F32,
    rows: Mapping[str, Array],
    *,
    tolerance: float = 1e-5,
) -> None:
    """Compares a kernel's results with those of the interpreter, for a few agents.

    Gradients from one θ and from one of each agent, with all rows and with padding, sums of loss
    and metrics, and the sums of `evaluate`.

    Args:
        kernel: the vectorized program.
        program: the same program on an interpreter.
        theta: float32, shape (P,) or (A, P).
        rows: arrays of shape (A, B, *shape) by column; the first agents' are used.
        tolerance: limit of the norm of a difference over the norm of the interpreter's result, the
            largest of these agents.

    Raises:
        ModelError: a result differs; says which, and by how much.
    """
    rows = {tensor.name: rows[tensor.name][:_CHECKED] for tensor in kernel.spec.columns}
    agents, count = next(iter(rows.values())).shape[:2]
    shared = theta if theta.ndim == 1 else theta[0]
    own = theta[:agents] if theta.ndim == 2 else _spread(theta, agents)
    padded = np.ones((agents, count), np.float32)
    padded[:, count - count // 2 :] = 0
    # BatchNormalization would take padding into its means: such models never get any.
    weights = [None] if kernel.spec.tracked else [None, padded]
    for weight in weights:
        for what, start in (("one θ", shared), ("θ of each agent", own)):
            where = f"{what}, {count} rows" + ("" if weight is None else ", half of them padding")
            compare = _Comparison(kernel, program, where, tolerance)
            compare.gradients(start, rows, weight)
            compare.sums(start, rows, weight)


def choose_kernel(
    package: ModelPackage, program: Program, rows: Mapping[str, Array], *, agents: int = 64
) -> VectorizedProgram | None:
    """Returns a package's vectorized program if it is right and faster for an agent; else None.

    The choice is made once for a package and number of rows, and kept: the same kernel, which
    serves one thread at a time. `kernel_reason` says why.

    Args:
        package: the model.
        program: its program on an interpreter.
        rows: arrays of shape (A, B, *shape) by column, of some agents: samples.
        agents: size of the cohort that is measured; the rows are repeated to fill it.
    """
    columns = {tensor.name: rows[tensor.name] for tensor in package.spec.columns}
    count = int(next(iter(columns.values())).shape[1])
    key = (package.digest, count)
    if key not in _CHOICES:
        _CHOICES[key] = _choose(package, program, columns, agents)
    return _CHOICES[key][0]


def kernel_reason(package: ModelPackage, rows: int) -> str:
    """Returns why the kernel for so many rows was chosen, in a line; empty before it was."""
    return _CHOICES.get((package.digest, rows), (None, ""))[1]


def _choose(
    package: ModelPackage, program: Program, rows: Mapping[str, Array], agents: int
) -> tuple[VectorizedProgram | None, str]:
    theta, why = package.whole(package.initial), ""
    for any_rows in (True, False):
        try:
            kernel = VectorizedProgram(
                package.program, package.spec, frozen=package.frozen, any_rows=any_rows
            )
            check_kernel(kernel, program, theta, rows)
        except ModelError as error:
            why = str(error)
            if isinstance(error, UnsupportedError):
                break
            continue
        return _faster(kernel, program, theta, rows, agents)
    return None, f"per-agent {program.runtime}: {why}"


def _faster(
    kernel: VectorizedProgram,
    program: Program,
    theta: F32,
    rows: Mapping[str, Array],
    agents: int,
) -> tuple[VectorizedProgram | None, str]:
    """Returns the kernel, if it takes less time for a step of an agent, and both times."""
    some = len(next(iter(rows.values())))
    cohort = {name: array.take(np.arange(agents) % some, axis=0) for name, array in rows.items()}
    own = _spread(theta, agents)
    first = range(min(some, agents, _ALONE))
    parts = [{name: array[agent] for name, array in rows.items()} for agent in first]

    def one_by_one() -> None:
        for agent, part in zip(first, parts, strict=True):
            program.gradient(own[agent], part)

    alone = _seconds(one_by_one) / len(parts)
    together = _seconds(lambda: kernel.gradient(own, cohort)) / agents
    pair = f"{_shown(together)} a step against {_shown(alone)}"
    if together < alone:
        return kernel, f"vectorized numpy: {pair}"
    pair = f"{_shown(alone)} a step against {_shown(together)}"
    return None, f"per-agent {program.runtime}: {pair}"


def _seconds(call: Callable[[], object]) -> float:
    """Measures the processor time of a call: on a busy machine a long call waits longer."""
    call()
    found = []
    for _ in range(_TRIES):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return min(found)


def _shown(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.3g} µs"


def _spread(theta: F32, agents: int) -> F32:
    """Returns θ near the given one for each agent."""
    noise = np.random.default_rng(0).standard_normal((agents, theta.size), np.float32)
    scale = np.float32(_SPREAD * float(np.sqrt(np.mean(np.square(theta, dtype=np.float64)) or 1)))
    found: F32 = theta + scale * noise
    return found


class _Comparison:
    """Comparison of a kernel's results with those of the interpreter."""

    def __init__(
        self, kernel: VectorizedProgram, program: Program, where: str, tolerance: float
    ) -> None:
        self._kernel, self._program = kernel, program
        self._where, self._tolerance = where, tolerance

    def gradients(self, theta: F32, rows: Mapping[str, Array], weight: F32 | None) -> None:
        """Compares gradients and the sums that come with them."""
        found = self._kernel.gradient(theta, rows, weight)
        agents = range(len(found.vector))
        wanted = [self._program.gradient(*_of_agent(theta, rows, weight, a)) for a in agents]
        self._compare("gradient", found.vector, [one.vector for one in wanted])
        self._compare("loss", found.loss, [one.loss for one in wanted])
        for name, totals in found.totals.items():
            self._compare(name, totals, [one.totals[name] for one in wanted])

    def sums(self, theta: F32, rows: Mapping[str, Array], weight: F32 | None) -> None:
        """Compares what `evaluate` returns."""
        found = self._kernel.evaluate(theta, rows, weight)
        agents = range(len(found.loss))
        wanted = [self._program.evaluate(*_of_agent(theta, rows, weight, a)) for a in agents]
        self._compare("evaluate: loss", found.loss, [sums.loss for sums in wanted])
        for name, totals in found.totals.items():
            self._compare(f"evaluate: {name}", totals, [sums.metrics[name] for sums in wanted])

    def _compare(self, what: str, found: object, wanted: object) -> None:
        one, other = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        other = other.reshape(one.shape)
        axes = tuple(range(1, one.ndim)) if what == "gradient" else None
        off = np.sqrt(np.square(one - other).sum(axes)).max()
        scale = np.sqrt(np.square(other).sum(axes)).max()
        if not off <= self._tolerance * (scale or 1.0):
            raise ModelError(
                f"{self._kernel.spec.name} ({self._where}): {what} differs by "
                f"{off / (scale or 1.0):.1e} from {self._program.runtime}'s, limit "
                f"{self._tolerance:g}"
            )


def _of_agent(
    theta: F32, rows: Mapping[str, Array], weight: F32 | None, agent: int
) -> tuple[F32, dict[str, Array]]:
    """Returns θ and the rows of one agent, as `Program` takes them."""
    own = {name: array[agent] for name, array in rows.items()}
    if weight is not None:
        own["weight"] = weight[agent]
    return (theta if theta.ndim == 1 else theta[agent]), own

"""Check of a converted program: it is run and compared with Keras before it is returned."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedge.errors import ExportError, ModelError, TrainingError
from learning.vector.parameters import F32
from models.export.backend import suppress_tensorflow_output
from models.export.objective.objective import Objective
from models.export.progress import step
from models.export.random_rows import representative_rows
from models.export.reference import Reference
from models.export.variables import Variables
from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.runtime.program import Program
from models.runtime.rows import Array, row_count

#: Norm of the difference over norm of Keras's gradient. Float32 sums in another order differ by
#: about 1e-6; a wrong formula by 1e-2 and more.
TOLERANCE = 1e-4
_DRAWS = 3


def verify(model: Any, package: ModelPackage, objective: Objective, variables: Variables) -> None:
    """Runs all signatures on random rows and compares the results with Keras.

    Raises:
        ExportError: the program does not load, or its results differ from Keras's.
    """
    reference = Reference(model, package, objective, variables)
    sizes = package.spec.batch_sizes
    # The last count is half a batch, to check padding.
    counts = [*sizes, *([sizes[0] // 2] if sizes[0] > 1 else [])]
    step("comparing the program with Keras")
    try:
        with suppress_tensorflow_output():  # the interpreters announce their delegates
            program = Program(package.program, package.spec, frozen=package.frozen)
            for count in counts:
                _compare_draws(model, program, reference, variables, count)
    except ExportError:
        raise
    except (ModelError, TrainingError) as error:
        raise ExportError(f"the converted program does not run: {error}") from error


def _compare_draws(
    model: Any, program: Program, reference: Reference, variables: Variables, count: int
) -> None:
    """Compares several draws of `count` rows; one of them must agree.

    Where activations are almost 0, as in a deep network of random weights, rounding decides on
    which side of a ReLU's kink they are; a wrong formula disagrees for all draws.
    """
    for seed in range(_DRAWS):
        rows = representative_rows(model, program.spec, np.random.default_rng(seed), count)
        try:
            _compare(program, reference, variables, rows)
        except ExportError:
            if seed == _DRAWS - 1:
                raise
        else:
            return


def _compare(
    program: Program, reference: Reference, variables: Variables, rows: dict[str, Array]
) -> None:
    spec, count, whole = program.spec, row_count(rows), reference.whole
    got, sums = program.gradient(whole, rows), program.evaluate(whole, rows)
    loss, gradient, _ = reference.gradient(whole, rows)
    # Random layers are inactive in evaluation, and BatchNormalization uses its averages; no other
    # layer may differ.
    inference_loss = reference.loss(whole, rows) if spec.stochastic or spec.tracked else loss
    if not (np.isfinite(loss) and np.isfinite(gradient).all()):
        raise ExportError(
            f"Keras itself finds a loss of {loss} for {count} random rows, or a gradient that is "
            "not finite: are weights very large, or does a layer divide by what may be 0?"
        )
    difference = relative_error(got.vector, gradient)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"for {count} rows the program's gradient differs from Keras's by {difference:.1e} "
            f"(limit {TOLERANCE}): {_worst(variables, got.vector, gradient)}. "
            "Does a layer of your own behave differently in training, draw random numbers, compute "
            "across rows, or expect inputs far from 0 and 1?"
        )
    for where, total, expected in (
        ("gradient", got.loss, loss),
        ("evaluate", sums.loss, inference_loss),
    ):
        if not abs(total / count - expected) <= TOLERANCE * max(1.0, abs(expected)):
            raise ExportError(
                f"for {count} rows {where} returns a mean loss of {total / count:.6g}, "
                f"Keras {expected:.6g}: does a layer of your own behave differently in training?"
            )
    predicted = program.predict(whole, rows)
    for output, wanted in zip(spec.outputs, reference.outputs(whole, rows), strict=True):
        off = relative_error(predicted[output.name], wanted)
        if not off <= TOLERANCE:
            raise ExportError(
                f"for {count} rows {output.name!r} differs from Keras's by {off:.1e} "
                f"(limit {TOLERANCE})"
            )


def outputs_differ_by(model: Any, spec: ModelSpec, one: Reference, other: Reference) -> float:
    """Returns the relative difference of two references' predictions, of the worst output."""
    rows = representative_rows(model, spec, np.random.default_rng(0), 64)
    found = [reference.outputs(reference.whole, rows) for reference in (one, other)]
    return max(relative_error(*pair) for pair in zip(*found, strict=True))


def relative_error(got: Array, expected: Array) -> float:
    """Returns |got - expected| / |expected| in norms; |got - expected| where `expected` is 0."""
    scale = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(got.astype(np.float64) - expected)) / (scale or 1.0)


def _worst(variables: Variables, got: F32, expected: F32) -> str:
    """Returns the name of the tensor that differs most."""
    differences, start = {}, 0
    for spec, _ in variables.learned:
        place = slice(start, start + spec.size)
        differences[spec.name] = float(np.linalg.norm(got[place] - expected[place]))
        start += spec.size
    return f"most in {max(differences, key=lambda key: differences[key])!r}"

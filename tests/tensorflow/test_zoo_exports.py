"""Committed packages of the zoo, compared with their builders."""

from __future__ import annotations

import numpy as np
import pytest

from models.export.random_rows import random_batch
from models.export.release.architecture import assign_weights, read_options, rebuild
from models.export.variables import read_variables
from models.export.verify import relative_error
from models.package.package import ModelPackage
from models.runtime.program import Program
from models.zoo import load_zoo, zoo_names, zoo_record
from models.zoo.exporting import export_record, objective_options, reference


@pytest.fixture(scope="module", params=zoo_names())
def committed(request: pytest.FixtureRequest) -> ModelPackage:
    return load_zoo(request.param)


def test_an_export_gives_the_committed_spec_and_weights(committed: ModelPackage) -> None:
    exported = export_record(zoo_record(committed.spec.name))
    assert exported.spec == committed.spec
    assert np.array_equal(exported.initial, committed.initial)


def test_the_committed_program_computes_keras_gradient(committed: ModelPackage) -> None:
    spec = committed.spec
    model = zoo_record(spec.name).build()
    rng = np.random.default_rng(9)
    for variable in model.trainable_variables:  # away from the initial weights, which may be zero
        variable.assign(variable + 0.05 * rng.standard_normal(variable.shape))
    theta = spec.layout.flatten([np.asarray(v) for v in model.trainable_variables])
    rows = random_batch(spec, rng)
    got = Program(committed.program, spec).gradient(theta, rows)
    loss, gradient, _ = reference(zoo_record(spec.name), model, committed).gradient(theta, rows)
    assert got.sums.loss / spec.batch_size == pytest.approx(loss, rel=1e-5)
    assert relative_error(got.vector, gradient) <= 1e-5


def test_the_committed_architecture_is_that_model(committed: ModelPackage) -> None:
    model = rebuild(committed)
    assign_weights(model, committed, committed.initial)
    record = zoo_record(committed.spec.name)
    assert read_options(committed) == objective_options(record)
    assert read_variables(model).layout == committed.spec.layout

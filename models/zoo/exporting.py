"""Exports packages of zoo models; `models.zoo.load_zoo` reads the committed ones."""

from __future__ import annotations

from typing import Any

from models.export.exporter import export_model
from models.export.objective.reading import ObjectiveOptions, read_objective
from models.export.reference import Reference
from models.package.package import ModelPackage
from models.zoo.record import ZooModel


def export_record(record: ZooModel) -> ModelPackage:
    """Exports a zoo model with its initial weights."""
    return export_model(
        record.build(),
        name=record.name,
        source=record.source,
        batch_size=record.batch_size,
        inputs=record.inputs,
        classes=record.classes,
        targets=record.targets,
        metrics=record.metrics,
        class_weight=record.class_weight,
        reconstruct=record.reconstruct,
    )


def reference(record: ZooModel, model: Any, package: ModelPackage) -> Reference:
    """Returns `model`, built from `record`, as the reference for a comparison with a program."""
    options = objective_options(record)
    return Reference(model, package, read_objective(model, package.spec.inputs, options))


def objective_options(record: ZooModel) -> ObjectiveOptions:
    """Returns the options that the exporter gets for a zoo model."""
    return ObjectiveOptions(
        reconstruct=record.reconstruct,
        class_weight=record.class_weight,
        metrics=record.metrics,
        classes=record.classes,
    )

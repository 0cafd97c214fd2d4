"""Packages of the zoo made anew; `models.zoo.load_zoo` reads those that were committed."""

from __future__ import annotations

from typing import Any

from models.export.exporter import export_model
from models.export.objective.objective import Wishes, read_objective
from models.export.release.verify import Reference
from models.package.package import ModelPackage
from models.zoo.record import ZooModel


def export_record(record: ZooModel) -> ModelPackage:
    """The package of a zoo model, with its initial weights."""
    return export_model(
        record.build(),
        name=record.name,
        source=record.source,
        batch_size=record.batch_size,
        inputs=record.inputs,
        classes=record.classes,
        metrics=record.metrics,
        class_weight=record.class_weight,
        reconstruct=record.reconstruct,
    )


def reference(record: ZooModel, model: Any, package: ModelPackage) -> Reference:
    """`model`, built from `record`, as Keras's side of a comparison with a program."""
    wishes = wishes_of(record)
    return Reference(model, package, read_objective(model, package.spec.inputs, wishes))


def wishes_of(record: ZooModel) -> Wishes:
    """What the exporter is told beside the model."""
    return Wishes(
        reconstruct=record.reconstruct,
        class_weight=record.class_weight,
        metrics=record.metrics,
        classes=record.classes,
    )

"""Packages of the zoo made anew; `models.zoo.load_zoo` reads those that were committed."""

from __future__ import annotations

from models.export.exporter import export_model
from models.package import ModelPackage
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
    )

"""Arguments of `compile()`, one entry per output of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedge.errors import ExportError, did_you_mean
from models.export.calling import output_keys
from models.export.variables import plain_name

#: Name of the only output of `predict`, where a model has one.
OUTPUT = "prediction"


def output_names(model: Any) -> list[str]:
    """Returns a name per output: identifiers that are the same for every export of the model."""
    if len(model.outputs) == 1:
        return [OUTPUT]
    names: list[str] = []
    for index, name in enumerate(output_keys(model) or model.output_names):
        base = plain_name(model, name, f"output_{index}")
        names.append(base if base not in names else f"{base}_{index}")
    return names


def compiled_losses(model: Any, names: Sequence[str]) -> list[Any]:
    """Returns the loss of each output.

    Raises:
        ExportError: the model is not compiled, or an output has no loss.
    """
    if not getattr(model, "compiled", False) or model.loss is None:
        raise ExportError(
            f"model {model.name!r} has no loss: call model.compile(loss=..., metrics=[...]) "
            "before exporting"
        )
    losses = _per_output(model, model.loss, names, "loss")
    if None in losses:
        missing = names[losses.index(None)]
        raise ExportError(f"output {missing!r} has no loss: give compile() one for every output")
    return losses


def compiled_loss_weights(model: Any, names: Sequence[str]) -> list[float]:
    """Returns the loss weight of each output; 1 where `compile()` was given none.

    Raises:
        ExportError: only some outputs have one.
    """
    given = model.get_compile_config().get("loss_weights")
    if given is None:
        return [1.0] * len(names)
    weights = _per_output(model, given, names, "loss weight")
    if None in weights:
        missing = names[weights.index(None)]
        raise ExportError(f"loss_weights: none for output {missing!r}: give all or none of them")
    return [float(weight) for weight in weights]


def compiled_metrics(model: Any, names: Sequence[str]) -> list[list[Any]]:
    """Returns the metrics of each output."""
    config = model.get_compile_config()
    found: list[list[Any]] = [[] for _ in names]
    for key in ("metrics", "weighted_metrics"):
        value = config.get(key) or []
        if len(names) == 1:
            found[0] += _flat(value)
            continue
        for index, item in enumerate(_per_output(model, value or None, names, "metric list")):
            found[index] += _flat(item)
    return found


def _per_output(model: Any, value: Any, names: Sequence[str], what: str) -> list[Any]:
    """Returns one entry per output, from what Keras takes as one value, a list or a dict.

    The keys of a dict are Keras's names of the outputs (`wear-level`), not the package's.
    """
    if isinstance(value, dict) and "class_name" not in value:
        if len(names) == 1 and len(value) == 1:
            return list(value.values())
        keys = output_keys(model) or model.output_names
        unknown = sorted(set(value) - set(keys))
        if unknown:
            raise ExportError(
                f"{what} for {unknown[0]!r}: {did_you_mean(unknown[0], keys)}the outputs are "
                f"{', '.join(keys)}"
            )
        return [value.get(key) for key in keys]
    if isinstance(value, list | tuple):
        if len(value) != len(names):
            raise ExportError(f"{what}: {len(value)} given for {len(names)} outputs")
        return list(value)
    return [value] * len(names)


def _flat(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, dict) and "class_name" not in value:
        return [item for entry in value.values() for item in _flat(entry)]
    if isinstance(value, list | tuple):
        return [item for entry in value for item in _flat(entry)]
    return [value]

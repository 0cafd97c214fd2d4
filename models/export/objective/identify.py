"""Identifies losses and metrics of Keras, given as name, object, class or configuration."""

from __future__ import annotations

from typing import Any

from fedge.errors import ExportError
from models.export.backend import keras


def identify(identifier: Any, what: str) -> tuple[str, dict[str, Any]]:
    """Returns Keras's snake-case name and the options of a loss or metric."""
    if isinstance(identifier, keras.losses.Loss):
        _check_owner(type(identifier).__module__, type(identifier).__name__, what)
        _check_reduction(identifier)
        # Huber's delta is missing from its configuration (Keras 3.15); the wrapper has it.
        hidden = getattr(identifier, "_fn_kwargs", {})
        return _snake(type(identifier).__name__), {**identifier.get_config(), **hidden}
    if isinstance(identifier, dict):  # as serialised by Keras
        config = identifier.get("config")
        if isinstance(
            config, str
        ):  # a function: its configuration holds only its name, not its module
            raise ExportError(
                f"{what} {config!r} is given as a function: give the name of one of Keras's own as "
                "text"
            )
        _check_owner(str(identifier.get("module")), str(identifier.get("class_name")), what)
        return _snake(str(identifier.get("class_name"))), dict(config or {})
    if isinstance(identifier, str):
        return _snake(identifier), {}
    name = getattr(identifier, "__name__", None) or repr(identifier)
    _check_owner(str(getattr(identifier, "__module__", "")), name, what)
    return _snake(name), {}


def _check_owner(module: str, name: str, what: str) -> None:
    if not module.startswith("keras"):
        raise ExportError(f"{what} {name!r} cannot be exported: name one of Keras's own")


def _check_reduction(loss: Any) -> None:
    if loss.reduction not in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
        raise ExportError(
            f"loss {loss.name!r} has reduction={loss.reduction!r}: programs minimise the mean over "
            "rows; leave reduction at its default"
        )


_ALIASES = {
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "bce": "binary_crossentropy",
    "huber_loss": "huber",
    "logcosh": "log_cosh",
}


def _snake(name: str) -> str:
    """Returns the snake-case name: `mean_squared_error` for `MeanSquaredError`, `MSE` or `mse`."""
    if name.upper() == name or name.islower():
        text = name.lower()
    else:
        text = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    return _ALIASES.get(text, text)

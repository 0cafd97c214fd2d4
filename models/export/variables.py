"""Assigns each variable of a Keras model to θ, to the personal part, or to the frozen part.

Seeds of Keras's random numbers belong to none: programs do not use them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from fedge.errors import ExportError
from learning.vector.parameters import F32, Layout, ParameterSpec
from models.export.backend import keras
from models.package.layer_names import free_name, stable_names


@dataclass(frozen=True, eq=False)
class Variables:
    """Variables of a model by part, each in the order of its vector.

    Attributes:
        shared: (specification, variable) of θ.
        personal: (specification, variable) of the personal part, which stays on the device.
        frozen: variables that are neither trained nor sent.
    """

    shared: Sequence[tuple[ParameterSpec, Any]]
    personal: Sequence[tuple[ParameterSpec, Any]]
    frozen: Sequence[Any]

    @property
    def layout(self) -> Layout:
        """Layout of θ."""
        return Layout(tuple(spec for spec, _ in self.shared))

    @property
    def personal_layout(self) -> Layout | None:
        """Layout of the personal part; None when there is none."""
        return Layout(tuple(spec for spec, _ in self.personal)) if self.personal else None

    @property
    def learned(self) -> list[tuple[ParameterSpec, Any]]:
        """Variables of θ, then those of the personal part: the program's vector."""
        return [*self.shared, *self.personal]

    def values(self, part: Iterable[tuple[ParameterSpec, Any]]) -> F32:
        """Returns the present values of a part as one vector."""
        arrays = [np.asarray(variable, np.float32).reshape(-1) for _, variable in part]
        return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)

    @property
    def frozen_tensors(self) -> list[F32]:
        """Present values of the frozen variables."""
        return [np.asarray(variable, np.float32) for variable in self.frozen]

    def by_id(self, whole: Any, frozen: Any, split: Any) -> dict[int, Any]:
        """Returns values of the variables, by `id(variable)`, cut from two vectors.

        Args:
            whole: θ, then the personal part.
            frozen: the frozen numbers; None when there are none.
            split: (vector, shapes) -> one array of each shape, of NumPy or TensorFlow.
        """
        pairs = [(variable, tuple(variable.shape)) for _, variable in self.learned]
        found = split(whole, [shape for _, shape in pairs])
        if self.frozen:
            shapes = [tuple(variable.shape) for variable in self.frozen]
            pairs += list(zip(self.frozen, shapes, strict=True))
            found = [*found, *split(frozen, shapes)]
        return {id(variable): part for (variable, _), part in zip(pairs, found, strict=True)}


def is_seed(variable: Any) -> bool:
    """Whether a variable is the seed state of Keras's random numbers."""
    return bool(variable.name == "seed_generator_state")


def constant_variables(model: Any) -> set[int]:
    """Returns the ids of variables that a program holds as constants: adapted mean and variance."""
    layers = [part for part in model._flatten_layers() if is_normalization(part)]
    return {id(variable) for layer in layers for variable in layer.variables}


def is_normalization(layer: Any) -> bool:
    """Whether a layer is Keras's `Normalization`, which scales by constants."""
    return isinstance(layer, keras.layers.Normalization)


def read_variables(model: Any, personal: Sequence[str] = ()) -> Variables:
    """Returns the variables of `model` by part.

    Args:
        model: a built model. Layers with `trainable = False` are frozen.
        personal: names of layers, or patterns (`head*`), that stay on the device.

    Raises:
        ExportError: a pattern matches no layer, or no variable is left to train or to send.
    """
    names = dict(_names(model))
    mine = _chosen(model, personal)
    trained = {id(v) for v in model.trainable_variables}
    tracked = [v for v in model.non_trainable_variables if _is_tracked(v, model)]
    shared: list[tuple[ParameterSpec, Any]] = []
    kept: list[tuple[ParameterSpec, Any]] = []
    for variable in [*model.trainable_variables, *tracked]:
        spec = ParameterSpec(
            names[id(variable)], tuple(variable.shape), id(variable) not in trained
        )
        (kept if id(variable) in mine else shared).append((spec, variable))
    if not any(id(variable) in trained for _, variable in shared):
        raise ExportError(
            f"model {model.name!r} has no trainable weights"
            + (" outside its personal layers: nothing would be averaged" if kept else "")
        )
    learned = {id(variable) for _, variable in (*shared, *kept)}
    for pattern in personal:
        if not _chosen(model, [pattern]) & learned:
            raise ExportError(
                f"personal {pattern!r}: these layers are frozen or have no weights: name layers "
                "that are trained"
            )
    others = learned | constant_variables(model)
    frozen = [v for v in model.variables if id(v) not in others and not is_seed(v)]
    return Variables(shared, kept, frozen)


def named_variables(model: Any) -> dict[str, Any]:
    """Returns the variables by their names in layouts."""
    names = dict(_names(model))
    return {names[id(v)]: v for v in model.variables if id(v) in names}


def freeze_all_but(model: Any, patterns: Sequence[str]) -> None:
    """Sets `trainable` so that only the named layers are trained.

    Raises:
        ExportError: a pattern matches no layer.
    """
    chosen = {id(part) for layer in _matching(model, patterns) for part in layer._flatten_layers()}
    parts = model._flatten_layers(include_self=False)
    # Models first: setting a model sets all layers in it.
    for part in sorted(parts, key=lambda part: not isinstance(part, keras.Model)):
        part.trainable = isinstance(part, keras.Model) or id(part) in chosen


def layer_names(model: Any) -> Iterator[tuple[Any, str]]:
    """Returns layers with names that are the same for every export of the model."""
    yield from _named(model.layers)


def _named(layers: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    given = list(layers)
    names = stable_names((layer.name, type(layer).__name__) for layer in given)
    yield from zip(given, names, strict=True)


def plain_name(model: Any, name: str, default: str) -> str:
    """Returns a layer's name by `layer_names` as an identifier; `default` if it cannot be one."""
    plain = next((plain for layer, plain in layer_names(model) if layer.name == name), name)
    plain = re.sub(r"\W", "_", plain)
    return plain if plain.isidentifier() and plain.isascii() else default


def _names(model: Any) -> Iterator[tuple[int, str]]:
    """Returns (id of a variable, its name in the layout); of a shared variable the first name."""
    seen: set[int] = set()
    taken: set[str] = set()
    for layer, layer_name in layer_names(model):
        inside = _inner_names(layer)
        for variable in layer.variables:
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            *path, last = variable.path.split("/")
            if layer.name in path:
                path = path[path.index(layer.name) + 1 :]
            else:  # the inner layer was built before the outer one
                path = [part for part in path if part in inside]
            base = "/".join([layer_name, *(inside.get(part, part) for part in path), last])
            name = free_name(base, taken)
            taken.add(name)
            yield id(variable), name


def _inner_names(layer: Any) -> dict[str, str]:
    """Returns names in Keras -> names in layouts, for the layers in a model or wrapper."""
    parts = {part.name: part for part in layer._flatten_layers()[1:]}
    # In the order of their weights: the order of Keras's list of layers is not reliable.
    named = dict.fromkeys(p for v in layer.variables for p in v.path.split("/") if p in parts)
    return {part.name: name for part, name in _named(parts[name] for name in named)}


def _is_tracked(variable: Any, model: Any) -> bool:
    """Whether a variable is a moving average of a trained BatchNormalization."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            moving = (layer.moving_mean, layer.moving_variance)
            if any(variable is average for average in moving):
                return True
    return False


def _chosen(model: Any, patterns: Sequence[str]) -> set[int]:
    """Returns the ids of all variables of the layers that match the patterns."""
    return {id(variable) for layer in _matching(model, patterns) for variable in layer.variables}


def _all_named(model: Any, above: str = "") -> Iterator[tuple[Any, str]]:
    """Returns all layers with names; a layer of an inner model is named `model/layer`."""
    for layer, name in layer_names(model):
        yield layer, above + name
        if isinstance(layer, keras.Model):
            yield from _all_named(layer, f"{above}{name}/")


def _matching(model: Any, patterns: Sequence[str]) -> list[Any]:
    named = list(_all_named(model))
    found = []
    for pattern in patterns:
        hits = [layer for layer, name in named if fnmatchcase(name, pattern)]
        if not hits:
            names = ", ".join(name for layer, name in named if layer.weights)
            raise ExportError(f"no layer is called {pattern!r}; layers with weights: {names}")
        found += hits
    return found

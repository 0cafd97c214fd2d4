"""Initial weights drawn anew: another θ of version 0, from the initializers of the model's layers.

The package's description of its model (`architecture.json`) names the initializer of each tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import numpy as np

from fedge.errors import ModelError
from learning.vector.parameters import F32, Layout, ParameterSpec
from models.package.initializers import draw, is_known
from models.package.layer_names import stable_names
from models.package.package import ARCHITECTURE_FILE, ModelPackage

#: First key of the random stream of each tensor: no other stream of a seed has it.
_STREAM = 7
_NUMBER = re.compile(r"_\d+$")
#: Variables whose initializer has another name in the layer's configuration.
_KEYS = {
    "kernel": ("kernel_initializer", "depthwise_initializer"),
    "depthwise_kernel": ("depthwise_initializer",),
    "pointwise_kernel": ("pointwise_initializer",),
    "recurrent_kernel": ("recurrent_initializer",),
}
_Config = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class DrawnWeights:
    """A package with initial weights drawn anew.

    Attributes:
        package: the model, with another θ of version 0 and another personal part.
        kept: reason by tensor that has the values of the package, because nothing says from what
            distribution it is drawn.
    """

    package: ModelPackage
    kept: Mapping[str, str] = field(default_factory=dict)


def draw_weights(package: ModelPackage, seed: int) -> DrawnWeights:
    """Draws the initial weights of a package anew.

    Each tensor has a stream of its own: a layer more or less changes no other one.

    Args:
        package: of which layers and initializers are read.
        seed: the same seed gives the same weights, on every machine up to the last bit of numpy's
            elementary functions.

    Raises:
        ModelError: the description of the model is damaged.
    """
    layers = _layers(package)
    kept: dict[str, str] = {}
    spec = package.spec
    initial = _drawn(spec.layout, package.initial, layers, seed, kept)
    personal = package.personal
    if spec.personal is not None:
        personal = _drawn(spec.personal, personal, layers, seed, kept)
    return DrawnWeights(replace(package, initial=initial, personal=personal), kept)


def _drawn(
    layout: Layout, values: F32, layers: Mapping[str, _Config], seed: int, kept: dict[str, str]
) -> F32:
    """Returns a vector drawn anew; adds the tensors that keep their values to `kept`."""
    drawn = values.copy()
    for parameter, place in layout.slices():
        found = _initializer(parameter, layers)
        if isinstance(found, str):
            kept[parameter.name] = found
            continue
        rng = np.random.default_rng([seed, _STREAM, crc32(parameter.name.encode())])
        try:
            tensor = _tensor(parameter, found, rng)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            kept[parameter.name] = f"{found.name}: {error}"
            continue
        drawn[place] = tensor.reshape(-1)
    return drawn


@dataclass(frozen=True)
class _Initializer:
    """Initializer of one variable: its class, its configuration, and that of its layer."""

    name: str
    config: _Config
    layer: _Config

    @property
    def key(self) -> str:
        """Text that is equal for initializers that draw alike."""
        config = {key: value for key, value in self.config.items() if key != "seed"}
        return json.dumps([self.name, config, self.layer.get("unit_forget_bias")], sort_keys=True)


def _tensor(parameter: ParameterSpec, found: _Initializer, rng: np.random.Generator) -> F32:
    tensor = draw(found.name, found.config, parameter.shape, rng)
    if found.layer.get("unit_forget_bias") and _variable(parameter.name) == "bias":
        # LSTM: ones for the forget gate, the second of four (Jozefowicz et al. 2015).
        units = parameter.shape[-1] // 4
        tensor[..., units : 2 * units] = 1.0
    return tensor


def _initializer(parameter: ParameterSpec, layers: Mapping[str, _Config]) -> _Initializer | str:
    """Returns the initializer of a tensor, or why it is unknown."""
    if not layers:
        return "the package has no description of its model"
    layer, *inside = parameter.name.split("/")[:-1]
    if layer not in layers:
        return f"no layer {layer!r} in {ARCHITECTURE_FILE}"
    last = _variable(parameter.name)
    keys = _KEYS.get(last, (f"{last}_initializer",))
    parts = [
        (name, config, config[key])
        for name, config in _parts(layers[layer])
        for key in keys
        if isinstance(config.get(key), dict)
    ]
    names = {_NUMBER.sub("", part) for part in inside}
    near = [part for part in parts if _NUMBER.sub("", part[0]) in names]
    found = [
        _Initializer(str(each.get("class_name")), each.get("config") or {}, config)
        for _, config, each in near or parts
    ]
    if len({each.key for each in found}) != 1:
        return "its layer names several initializers" if found else "its layer names no initializer"
    if not is_known(found[0].name):
        return f"initializer {found[0].name} is not one of Keras's that can be drawn here"
    return found[0]


def _variable(name: str) -> str:
    """Returns the variable's name in its layer: `kernel` of `dense/kernel_1`."""
    return _NUMBER.sub("", name.rpartition("/")[2])


def _layers(package: ModelPackage) -> dict[str, _Config]:
    """Returns the layers of the description by their names in the layout."""
    if not package.architecture:
        return {}
    try:
        document = json.loads(package.architecture)["keras"]
        if document is None:  # a layer has no JSON
            return {}
        layers = [(each["config"]["name"], each["class_name"], each) for each in _listed(document)]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{ARCHITECTURE_FILE} of {package.spec.name!r} is damaged: export the model again"
        ) from error
    names = stable_names((name, class_name) for name, class_name, _ in layers)
    return {name: each for name, (_, _, each) in zip(names, layers, strict=True)}


def _listed(document: _Config) -> list[_Config]:
    """Returns the layers of a model that have a name, in its order."""
    layers = document["config"]["layers"]
    return [each for each in layers if "name" in each["config"]]


def _parts(value: Any) -> Iterator[tuple[str, _Config]]:
    """Returns name and configuration of a layer and of all layers in it."""
    if isinstance(value, Mapping):
        config = value.get("config")
        if isinstance(config, Mapping) and "class_name" in value:
            yield str(config.get("name", "")), config
        for each in value.values():
            yield from _parts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _parts(each)

"""Every codec by its name in configurations and plans."""

from __future__ import annotations

from collections.abc import Callable

from fedge.errors import ConfigError
from learning.codecs.codec import Codec, CodecConfig
from learning.codecs.floats import Float16Codec, Float32Codec
from learning.codecs.int8 import Int8Codec

#: Name in a configuration -> class.
CODECS: dict[str, Callable[[CodecConfig], Codec]] = {
    "float32": Float32Codec,
    "float16": Float16Codec,
    "int8": Int8Codec,
}


def make_codec(config: CodecConfig) -> Codec:
    """The codec that `config` names.

    Raises:
        ConfigError: no codec has that name.
    """
    codec = CODECS.get(config.name)
    if codec is None:
        raise ConfigError(f"unknown codec {config.name!r}; known codecs: {', '.join(CODECS)}")
    return codec(config)

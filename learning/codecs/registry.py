"""Every codec by its name in configurations and plans."""

from __future__ import annotations

from learning.codecs.codec import Codec
from learning.codecs.floats import Float16Codec, Float32Codec
from learning.codecs.int8 import Int8Codec
from learning.registry import Registry

CODECS: Registry[Codec] = Registry("codec", Float32Codec, Float16Codec, Int8Codec)

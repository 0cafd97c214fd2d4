"""Vectors to few bytes and back; one file per family of codecs."""

from learning.codecs.codec import Codec, CodecConfig
from learning.codecs.feedback import Encoded, compensate
from learning.codecs.registry import CODECS, make_codec

__all__ = ["CODECS", "Codec", "CodecConfig", "Encoded", "compensate", "make_codec"]

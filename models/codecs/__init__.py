"""Vectors to few bytes and back; one file per family of codecs."""

from models.codecs.codec import Codec, CodecConfig
from models.codecs.feedback import Encoded, compensate
from models.codecs.registry import CODECS, make_codec

__all__ = ["CODECS", "Codec", "CodecConfig", "Encoded", "compensate", "make_codec"]

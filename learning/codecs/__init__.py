"""Vectors to few bytes and back; one file per family of codecs."""

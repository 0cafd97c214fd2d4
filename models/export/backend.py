"""Imports TensorFlow and Keras, for the exporter and the builders of models.

Importing this module takes seconds and some 500 MB; without TensorFlow it raises an `ExportError`
that says what to install. Devices never import it.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

from fedge.errors import ExportError
from models.runtime.stderr import suppress_stderr

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
try:
    with suppress_stderr():
        import keras
        import tensorflow as tf
except ImportError as error:
    raise ExportError(
        f"TensorFlow is needed to export a model ({error}): install fedge with its extra, "
        "fedge[export], on a workstation; devices do not need it"
    ) from error

if keras.backend.backend() != "tensorflow":
    raise ExportError(
        f"Keras runs on {keras.backend.backend()!r} here; only its TensorFlow backend can be "
        "exported: unset KERAS_BACKEND"
    )


@contextlib.contextmanager
def suppress_tensorflow_output() -> Iterator[None]:
    """Suppresses warnings and messages of TensorFlow itself until the block ends."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        with warnings.catch_warnings(), suppress_stderr():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


#: TensorFlow has no type stubs: a `tf.Tensor` and a `tf.Operation` are `Any` to the type checker.
Tensor = Any
Operation = Any

__all__ = ["Operation", "Tensor", "keras", "suppress_tensorflow_output", "tf"]

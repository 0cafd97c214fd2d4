"""Keras models to programs: the only place that imports TensorFlow."""

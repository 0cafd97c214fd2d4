"""Exporter: compiled Keras models -> programs that devices train. Imports TensorFlow."""

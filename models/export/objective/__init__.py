"""Objective of a Keras model: losses and metrics per row."""

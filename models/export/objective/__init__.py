"""Losses and metrics of a Keras model, per row."""

"""Runs programs with a TFLite interpreter: gradients, evaluation, predictions."""

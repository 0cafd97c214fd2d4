"""Keras layers: checks whether they can be exported, and substitutes that TFLite can run."""

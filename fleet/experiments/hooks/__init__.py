"""Hooks: what follows a run from outside, as TensorBoard and MLflow do."""

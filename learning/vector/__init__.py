"""Vectors: parameters θ and their layout, metric sums, frames."""

"""Coordinator: runs a federation's rounds and keeps its state."""

"""Runs of a scenario in real processes."""

"""Federations made of arrays in memory, for the Python API (`fleet/api.py`)."""

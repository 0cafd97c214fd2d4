"""Checks of a device before it takes part: data, interpreter, broker."""

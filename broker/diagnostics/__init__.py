"""Checks of a broker, its access rules and the way to it."""

"""Base package of all others, and the `fedge` command."""

__version__ = "0.1.0"

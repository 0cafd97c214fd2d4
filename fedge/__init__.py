"""Ground floor and front door: what every part stands on, and the `fedge` command."""

__version__ = "0.1.0"

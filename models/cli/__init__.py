"""The `fedge model` commands."""

"""The `fedge broker` commands."""

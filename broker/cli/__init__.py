"""Commands of `fedge broker`."""

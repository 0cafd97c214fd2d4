"""Commands `fedge fleet` and `fedge experiment`."""

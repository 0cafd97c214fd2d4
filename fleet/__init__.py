"""Many agents on one machine."""

"""The device's own data."""

"""Mosquitto of a fleet: its configuration, its rules while it runs, its log."""

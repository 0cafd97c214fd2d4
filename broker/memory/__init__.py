"""Simulated broker and link in memory and virtual time."""

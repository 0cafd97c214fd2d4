"""Vectors to few bytes and back."""

"""Formats of data files: text (.csv) and SQLite, read block by block."""

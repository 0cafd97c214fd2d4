"""Summaries of rounds: what is stored and reported."""

"""Aggregators: a round's updates become one aggregate; one file each."""

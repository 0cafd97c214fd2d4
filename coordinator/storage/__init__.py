"""State of a federation on disk: store, log of the open round, backups, orders of an operator."""

"""Link in memory and virtual time, with its own broker."""

"""A fleet in virtual time: the real machines on an in-memory broker, with faults."""

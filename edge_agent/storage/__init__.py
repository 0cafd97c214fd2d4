"""The agent's files: pending update and device state, chunks, trust."""

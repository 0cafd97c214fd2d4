"""What the agent keeps on disk: pending update, chunks, trust."""

"""How messages travel: topics, messages, blobs, links, local brokers."""

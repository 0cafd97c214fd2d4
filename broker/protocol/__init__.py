"""Protocol v1: topics, messages, blobs, signatures."""

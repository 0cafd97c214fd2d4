"""Released models, and fresh programs compared with Keras."""

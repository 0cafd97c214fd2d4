"""Programs run by a TFLite interpreter: gradients, evaluation, predictions."""

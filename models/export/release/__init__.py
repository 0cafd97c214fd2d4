"""Released models: weights and model in one `.tflite` for predicting."""

"""Gradients of TensorFlow operators, made of TFLite built-in operators."""

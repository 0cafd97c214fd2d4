"""Gradients made of TFLite built-in operators."""

"""Accuracy and speed of any Runtime. No torch."""

"""Averages of the weights along the way."""

"""Checkpoints: read any format, match by name, write, and build the model they belong to."""

"""Data: batches in a fixed order, where they come from, and label noise."""

"""Factors trained in place of the weights."""

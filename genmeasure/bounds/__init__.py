"""Generalization bounds: one file per prior work, functions of a subject that return the bound's terms."""

"""Measures: one file each, functions of a subject that return estimates."""

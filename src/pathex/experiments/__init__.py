"""Experiments: one run in its folder, many runs from one file, and the report on finished ones."""

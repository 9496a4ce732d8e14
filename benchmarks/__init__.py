"""Benchmarks for those who develop pathex: ``python -m benchmarks.rounds`` and so on, from the repository's root."""

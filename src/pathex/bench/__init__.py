"""Benchmarks that anyone can run: seconds, memory and ratios, as rows with their environment and plots."""

from pathex.bench._running import Outcome, measure
from pathex.bench._suite import ERROR, Bench, Row, Suite, find, names

__all__ = ["ERROR", "Bench", "Outcome", "Row", "Suite", "find", "measure", "names"]

"""What a network is trained to do: what it is built from, its loss, and how it is measured."""

from pathex.tasks.classification import Classification, build_classification

__all__ = ["Classification", "build_classification"]

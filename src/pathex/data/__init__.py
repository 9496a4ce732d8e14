"""Data sets by name, the pruning set, and augmentation on the device."""

from pathex.data._augmentation import AUGMENTATIONS, Augmentation, augment
from pathex.data._catalogue import describe, load, names, option_names
from pathex.data._classes import task_splits
from pathex.data._decoding import DecodedSplit, reading_threads
from pathex.data._images import ArraySplit, ImageData, Split
from pathex.data._selection import PruningSet, pruning_set, validation_split

__all__ = [
    "AUGMENTATIONS",
    "ArraySplit",
    "Augmentation",
    "DecodedSplit",
    "ImageData",
    "PruningSet",
    "Split",
    "augment",
    "describe",
    "load",
    "names",
    "option_names",
    "pruning_set",
    "reading_threads",
    "task_splits",
    "validation_split",
]

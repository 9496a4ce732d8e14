"""Data sets by name, the pruning set, and augmentation on the device."""

from pathex.data._augmentation import AUGMENTATIONS, ON_HOST, Augmentation, Draws, augment
from pathex.data._catalogue import describe, load, names, option_names
from pathex.data._classes import task_splits
from pathex.data._decoding import DecodedSplit, reading_pool, reading_threads
from pathex.data._images import ArraySplit, ImageData, Split
from pathex.data._pixels import upload
from pathex.data._selection import PruningSet, pruning_set, validation_split

__all__ = [
    "AUGMENTATIONS",
    "ON_HOST",
    "ArraySplit",
    "Augmentation",
    "DecodedSplit",
    "Draws",
    "ImageData",
    "PruningSet",
    "Split",
    "augment",
    "describe",
    "load",
    "names",
    "option_names",
    "pruning_set",
    "reading_pool",
    "reading_threads",
    "task_splits",
    "upload",
    "validation_split",
]

"""Data sets by name, the pruning set, and augmentation."""

from pathex.data._augmentation import AUGMENTATIONS, Augmentation, Draws, apply_each, augment
from pathex.data._catalogue import describe, load, names, option_names
from pathex.data._classes import choose_classes, task_splits
from pathex.data._decoding import DecodedSplit
from pathex.data._images import ImageData
from pathex.data._pixels import upload
from pathex.data._segmentation import SegmentationData, SegmentationSplit, segmentation_pruning_set
from pathex.data._selection import PruningSet, pruning_set, validation_split
from pathex.data._splits import ArraySplit, Split
from pathex.data._window import IGNORED, Window
from pathex.data._workers import default_workers, read_ahead

__all__ = [
    "AUGMENTATIONS",
    "IGNORED",
    "ArraySplit",
    "Augmentation",
    "DecodedSplit",
    "Draws",
    "ImageData",
    "PruningSet",
    "SegmentationData",
    "SegmentationSplit",
    "Split",
    "Window",
    "apply_each",
    "augment",
    "choose_classes",
    "default_workers",
    "describe",
    "load",
    "names",
    "option_names",
    "pruning_set",
    "read_ahead",
    "segmentation_pruning_set",
    "task_splits",
    "upload",
    "validation_split",
]

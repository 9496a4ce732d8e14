"""Data sets by name, the pruning set, and augmentation."""

from pathex.data.augmentation import AUGMENTATIONS, Augmentation, Draws, apply_each, augment
from pathex.data.catalogue import describe, load, names, option_names
from pathex.data.images import ImageData, upload
from pathex.data.listing import fingerprint
from pathex.data.segmentation import IGNORED, SegmentationData, SegmentationSplit, Window, segmentation_pruning_set
from pathex.data.selection import PruningSet, choose_classes, pruning_set, task_splits, validation_split
from pathex.data.splits import ArraySplit, DecodedSplit, Split
from pathex.data.workers import default_workers, read_ahead

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
    "fingerprint",
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

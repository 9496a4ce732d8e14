"""Training of one network on one device: batches, the loop, its checkpoints and its measurements."""

from pathex.train.checkpoint import replacing
from pathex.train.feed import Feed
from pathex.train.loop import Events, TrainingDiverged, TrainOptions, evaluate, fit
from pathex.train.machine import PRECISIONS, check_machine, fabric

__all__ = [
    "PRECISIONS",
    "Events",
    "Feed",
    "TrainOptions",
    "TrainingDiverged",
    "check_machine",
    "evaluate",
    "fabric",
    "fit",
    "replacing",
]

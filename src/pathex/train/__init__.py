"""Training of one network: batches, the loop, its checkpoints and its measurements."""

from pathex.train.checkpoint import load_checkpoint, replacing
from pathex.train.feed import Feed
from pathex.train.loop import TrainingDiverged, evaluate, fit, memory_format
from pathex.train.machine import PRECISIONS, check_machine, fabric
from pathex.train.options import Batches, Companion, Events, Prepare, TrainOptions
from pathex.train.seeding import epoch_generator, epoch_seed
from pathex.train.tracking import check_logger

__all__ = [
    "PRECISIONS",
    "Batches",
    "Companion",
    "Events",
    "Feed",
    "Prepare",
    "TrainOptions",
    "TrainingDiverged",
    "check_logger",
    "check_machine",
    "epoch_generator",
    "epoch_seed",
    "evaluate",
    "fabric",
    "fit",
    "load_checkpoint",
    "memory_format",
    "replacing",
]

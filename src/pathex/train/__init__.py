"""Training of one network on one device: batches, the loop, its checkpoints and its measurements."""

from pathex.train.checkpoint import load_checkpoint, replacing
from pathex.train.feed import Feed
from pathex.train.loop import (
    Batches,
    Companion,
    Events,
    Prepare,
    TrainingDiverged,
    TrainOptions,
    evaluate,
    fit,
    memory_format,
)
from pathex.train.machine import PRECISIONS, check_machine, fabric, is_first_process
from pathex.train.seeding import epoch_generator, epoch_seed
from pathex.train.stepping import CAPTURES
from pathex.train.tracking import check_logger

__all__ = [
    "CAPTURES",
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
    "is_first_process",
    "load_checkpoint",
    "memory_format",
    "replacing",
]

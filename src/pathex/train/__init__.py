"""Training of one network: batches, the loop, its checkpoints and its measurements."""

from pathex.train.feed import Feed, check_share, cut_batches, epoch_generator, epoch_seed, share_of
from pathex.train.loop import TrainingDiverged, evaluate, fit, load_checkpoint, memory_format, save_checkpoint
from pathex.train.machine import PRECISIONS, check_machine, fabric, pace
from pathex.train.mixing import Mixed
from pathex.train.options import Batches, Companion, Events, Observe, Prepare, TrainOptions
from pathex.train.remedies import attach_remedy, check_recipe
from pathex.train.trackers import check_logger, tracked

__all__ = [
    "PRECISIONS",
    "Batches",
    "Companion",
    "Events",
    "Feed",
    "Mixed",
    "Observe",
    "Prepare",
    "TrainOptions",
    "TrainingDiverged",
    "attach_remedy",
    "check_logger",
    "check_machine",
    "check_recipe",
    "check_share",
    "cut_batches",
    "epoch_generator",
    "epoch_seed",
    "evaluate",
    "fabric",
    "fit",
    "load_checkpoint",
    "memory_format",
    "pace",
    "save_checkpoint",
    "share_of",
    "tracked",
]

"""Training of one network: batches, the loop, its checkpoints and its measurements."""

from pathex.train.averaging import check_average
from pathex.train.feed import Feed, check_share, cut_batches, epoch_generator, epoch_seed, share_of
from pathex.train.loop import TrainingDiverged, evaluate, fit, load_checkpoint, memory_format, save_checkpoint
from pathex.train.machine import PRECISIONS, check_machine, fabric, pace
from pathex.train.mixing import Mixed
from pathex.train.options import Batches, Companion, Events, Prepare, TrainOptions
from pathex.train.remedies import HAM, SignIn, SparseOpt, check_remedy, unit_factors
from pathex.train.schedule import lr_schedule
from pathex.train.trackers import check_logger, tracked

__all__ = [
    "HAM",
    "PRECISIONS",
    "Batches",
    "Companion",
    "Events",
    "Feed",
    "Mixed",
    "Prepare",
    "SignIn",
    "SparseOpt",
    "TrainOptions",
    "TrainingDiverged",
    "check_average",
    "check_logger",
    "check_machine",
    "check_remedy",
    "check_share",
    "cut_batches",
    "epoch_generator",
    "epoch_seed",
    "evaluate",
    "fabric",
    "fit",
    "load_checkpoint",
    "lr_schedule",
    "memory_format",
    "pace",
    "save_checkpoint",
    "share_of",
    "tracked",
    "unit_factors",
]

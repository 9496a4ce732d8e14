"""From scores to masks: rounds, schedules, allocations, floors, and masks that move while a network trains."""

from pathex.pruning import dynamic
from pathex.pruning.allocation import ALLOCATIONS, Allocation, described, layer_densities, read_allocation
from pathex.pruning.checks import check_together, searches
from pathex.pruning.rounds import PruneResult, default_rounds, prune
from pathex.pruning.schedule import ADAPTIVE, densities, read_schedule
from pathex.pruning.scoring import score
from pathex.pruning.structure import read_structure
from pathex.pruning.updater import BUDGETS

__all__ = [
    "ADAPTIVE",
    "ALLOCATIONS",
    "BUDGETS",
    "Allocation",
    "PruneResult",
    "check_together",
    "default_rounds",
    "densities",
    "described",
    "dynamic",
    "layer_densities",
    "prune",
    "read_allocation",
    "read_schedule",
    "read_structure",
    "score",
    "searches",
]

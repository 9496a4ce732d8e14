"""What a mask does to a network: what died, what it costs, what it is worth without one of its parts."""

from pathex.analysis.ablations import flipped, shuffled
from pathex.analysis.collapse import PruneReport, examine, listed, warn_of_collapse
from pathex.analysis.counts import Counts, count, matching_width

__all__ = [
    "Counts",
    "PruneReport",
    "count",
    "examine",
    "flipped",
    "listed",
    "matching_width",
    "shuffled",
    "warn_of_collapse",
]

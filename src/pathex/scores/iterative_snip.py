"""Iterative SNIP."""

from dataclasses import dataclass

from torch import Tensor

from pathex.scores.method import LossMethod
from pathex.scores.problem import Problem
from pathex.scores.snip import connection_sensitivity


@dataclass(frozen=True, kw_only=True)
class IterativeSnip(LossMethod):
    r"""Iterative SNIP (de Jorge et al., ICLR 2021; Verdenius et al. 2020): SNIP as the network shrinks.

    S_j = |theta_j dL/dtheta_j| of the masked network, in every round; a pruned weight never returns.
    """

    name = "iterative-snip"
    title = "Iterative SNIP"
    citation = (
        "de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive skeletonization: trimming more fat from a "
        "network at initialization. ICLR 2021, arXiv 2006.09081"
    )
    equation = "S_j = |theta_j dL/dtheta_j| at the masked weights, L the mean cross-entropy"
    rounds = 60
    rounding = "down"

    def score(self, problem: Problem) -> dict[str, Tensor]:
        return connection_sensitivity(self.reader(problem))

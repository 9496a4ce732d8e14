"""Iterative GraSP, as released with FORCE."""

from dataclasses import dataclass

from torch import Tensor

from pathex.scores.loss import loss_gradient
from pathex.scores.method import LossMethod
from pathex.scores.problem import Problem


@dataclass(frozen=True, kw_only=True)
class IterativeGrasp(LossMethod):
    r"""GRASP-It (de Jorge et al., ICLR 2021): what a weight has of the squared gradient norm, as the network shrinks.

    S_j = (dL/dtheta_j)^2 of the masked network, in every round; a pruned weight never returns. It stands for GraSP's
    aim, the gradient norm, without its Hessian; ``grasp`` with more rounds scores theta_j (H g)_j anew in each.
    """

    name = "iterative-grasp"
    title = "Iterative GraSP"
    citation = (
        "de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive skeletonization: trimming more fat from a "
        "network at initialization. ICLR 2021, arXiv 2006.09081"
    )
    equation = "S_j = (dL/dtheta_j)^2 at the masked weights, L the mean cross-entropy"
    rounds = 60
    rounding = "down"

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        return {name: part.square_() for name, part in loss_gradient(reader, reader.leaves()).items()}

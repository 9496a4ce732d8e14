"""FORCE, foresight connection sensitivity."""

from dataclasses import dataclass, replace

from torch import Tensor

from pathex.scores.loss import loss_gradient
from pathex.scores.method import LossMethod
from pathex.scores.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Force(LossMethod):
    r"""FORCE, foresight connection sensitivity (de Jorge et al., ICLR 2021): the sensitivity after pruning.

        S_j = |theta_j dL/dtheta_j|, the gradient at the masked weights c * theta, theta_j the weight itself.

    The gradient reaches pruned weights too, so that those that the sparse network would use come back in a later round.
    """

    name = "force"
    title = "FORCE, foresight connection sensitivity"
    citation = (
        "de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive skeletonization: trimming more fat from a "
        "network at initialization. ICLR 2021, arXiv 2006.09081"
    )
    equation = "S_j = |theta_j (dL/dtheta_j at c theta)|, c the mask of the round before, theta_j not masked"
    rounds = 60
    rounding = "down"
    revives = True
    beside = 20

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        gradient = loss_gradient(reader, reader.leaves())
        own = replace(reader, problem=replace(problem, mask=None)).weights()
        return {name: (weight * gradient[name]).abs() for name, weight in own.items()}

"""SNIP, connection sensitivity."""

from dataclasses import dataclass

from torch import Tensor

from pathex.scores.loss import loss_gradient
from pathex.scores.method import LossMethod
from pathex.scores.model_reader import ModelReader
from pathex.scores.problem import Problem


def connection_sensitivity(reader: ModelReader) -> dict[str, Tensor]:
    """The absolute derivative of the mean loss with respect to the mask, at the mask."""
    at = reader.leaves()
    gradient = loss_gradient(reader, at)
    return {name: gradient[name].mul_(weight.detach()).abs_() for name, weight in at.weights.items()}


@dataclass(frozen=True, kw_only=True)
class Snip(LossMethod):
    r"""SNIP (Lee, Ajanthan, Torr, ICLR 2019): the sensitivity of the loss to the presence of a connection.

    S_j = |dL / dc_j| = |theta_j dL/dtheta_j|        with weights c * theta at c = mask.
    """

    name = "snip"
    title = "SNIP, connection sensitivity"
    citation = (
        "Lee, Ajanthan, Torr: SNIP: Single-shot network pruning based on connection sensitivity. ICLR 2019, "
        "arXiv 1810.02340"
    )
    equation = "S_j = |dL/dc_j| = |theta_j dL/dtheta_j|, L the mean cross-entropy with weights c theta"

    def score(self, problem: Problem) -> dict[str, Tensor]:
        return connection_sensitivity(self.reader(problem))

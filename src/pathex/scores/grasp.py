"""GraSP, gradient signal preservation."""

from dataclasses import dataclass

from torch import Tensor

from pathex.scores.loss import hessian_product, kept_part, loss_gradient
from pathex.scores.method import LossMethod
from pathex.scores.options import Positive
from pathex.scores.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Grasp(LossMethod):
    r"""GraSP (Wang, Zhang, Grosse, ICLR 2020): what a weight contributes to the gradient flow.

        g = dL/dtheta,    S_j = theta_j (H g)_j,    H the Hessian of L.

    To first order, removing weight j takes 2 S_j from the squared norm of the gradient, as ``grad (|g|^2 / 2) = H g``.
    Scores may be negative: such a weight dampens the flow and goes first.

    Attributes:
        temperature: The outputs are divided by it before the loss, as released.
    """

    name = "grasp"
    title = "GraSP, gradient signal preservation"
    citation = (
        "Wang, Zhang, Grosse: Picking winning tickets before training by preserving gradient flow. ICLR 2020, "
        "arXiv 2002.07376"
    )
    equation = (
        "S_j = theta_j (H g)_j, g = dL/dtheta, H = d^2L/dtheta^2, L the mean cross-entropy of outputs / "
        "temperature; higher is kept"
    )
    beside = 20

    temperature: Positive = 200.0

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        at = reader.leaves()
        # Pruned weights do not train: their part of the gradient is no flow.
        gradient = kept_part(problem, loss_gradient(reader, at, self.temperature))
        product = hessian_product(reader, at, gradient, self.temperature)
        return {name: weight.detach() * product[name] for name, weight in at.weights.items()}

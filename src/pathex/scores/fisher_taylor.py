"""Fisher-Taylor sensitivity."""

from dataclasses import dataclass

from torch import Tensor

from pathex.scores.jacobian import squared_jacobian
from pathex.scores.loss import loss_gradient
from pathex.scores.method import ModelMethod
from pathex.scores.model_reader import has_class
from pathex.scores.options import NaturalOrNone
from pathex.scores.problem import Problem


@dataclass(frozen=True, kw_only=True)
class FisherTaylor(ModelMethod):
    r"""FTS (Gollini Navarrete et al., CPAL 2026): the change of the loss when a weight goes, to second order.

        S_j = | theta_j g_j + theta_j^2 F_j / 2 |,    g = dL/dtheta,    F_j = mean_n ( dL_n / dtheta_j )^2,

    the Taylor expansion with the empirical Fisher information in place of the diagonal of the Hessian.

    Attributes:
        projections: None: exact up to 4096 backward passes of one image, beyond them 32 random projections; 0: exact;
            P: P random projections.
    """

    name = "fisher-taylor"
    title = "Fisher-Taylor sensitivity"
    citation = (
        "Gollini Navarrete, Cuadrado Avila, Takac, Horvath: What scalable second-order information knows for pruning "
        "at initialization. CPAL 2026, arXiv 2502.11450 (first version: Fishing for cheap and efficient pruners at "
        "initialization)"
    )
    equation = "S_j = |theta_j g_j + theta_j^2 F_j / 2|, g = dL/dtheta, F_j = mean_n (dL_n/dtheta_j)^2"
    needs = "labels"
    beside = 40

    projections: NaturalOrNone = None

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        at = reader.leaves()
        first = loss_gradient(reader, at)

        def losses(outputs: Tensor, labels: Tensor) -> Tensor:
            summed = reader.loss_of(outputs, labels, "none").reshape(len(outputs), -1).sum(1)
            return summed / _classes(labels).clamp_min(1)

        second = squared_jacobian(reader, losses, self.projections, labels=True)
        assert problem.labels is not None  # there is a loss
        images = int(_classes(problem.labels).count_nonzero())
        return {n: (first[n] * weight.detach() + second[n] / (2 * images)).abs() for n, weight in at.weights.items()}


def _classes(labels: Tensor) -> Tensor:
    """How many labels of each image stand for a class; of class probabilities all do."""
    numbers = labels[:, :1] if labels.is_floating_point() and labels.dim() > 1 else labels
    return has_class(numbers).reshape(len(labels), -1).sum(1)

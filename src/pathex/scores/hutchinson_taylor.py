"""Hutchinson-Taylor sensitivity."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pathex.scores.loss import hessian_diagonal, loss_gradient
from pathex.scores.method import LossMethod
from pathex.scores.options import Count, Positive
from pathex.scores.problem import Problem


@dataclass(frozen=True, kw_only=True)
class HutchinsonTaylor(LossMethod):
    r"""HTS (Gollini Navarrete et al., CPAL 2026): the change of the loss when a weight goes, to second order.

        S_j = | theta_j g_j + theta_j^2 h_j / 2 |,    g = dL/dtheta,    h the diagonal of the Hessian of L,

    by Hutchinson's estimate, the mean of z (H z) over random signs z, drawn for each image.

    Attributes:
        form: ``taylor``: as above; ``saliency``: theta_j^2 h_j / 2 alone, the form of Optimal Brain Damage;
            ``diagonal``: h_j alone.
        samples: Random signs of an image.
        temperature: The outputs are divided by it before the loss, as released.
        calibration: As in other methods; ``batch`` is what the authors call a warm-up of BatchNorm, on the pruning set.
    """

    name = "hutchinson-taylor"
    title = "Hutchinson-Taylor sensitivity"
    citation = (
        "Gollini Navarrete, Cuadrado Avila, Takac, Horvath: What scalable second-order information knows for pruning "
        "at initialization. CPAL 2026, arXiv 2502.11450"
    )
    equation = (
        "S_j = |theta_j g_j + theta_j^2 h_j / 2|, g = dL/dtheta, h_j = mean_z z_j (H z)_j, H = d^2L/dtheta^2, L the "
        "mean cross-entropy of outputs / temperature"
    )
    beside = 40

    form: Literal["taylor", "saliency", "diagonal"] = "taylor"
    samples: Count = 10
    temperature: Positive = 200.0
    calibration: Literal["train", "batch", "running"] = "batch"

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        at = reader.leaves()
        diagonal = hessian_diagonal(reader, at, self.samples, self.temperature)
        if self.form == "diagonal":
            return diagonal
        weights = {name: weight.detach() for name, weight in at.weights.items()}
        second = {name: weight.square() * diagonal[name] / 2 for name, weight in weights.items()}
        if self.form == "saliency":
            return second
        first = loss_gradient(reader, at, self.temperature)
        return {name: (weight * first[name] + second[name]).abs() for name, weight in weights.items()}

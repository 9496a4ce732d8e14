"""Diagonal of the Fisher information."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pathex.errors import InvalidInput
from pathex.scores.jacobian import squared_jacobian
from pathex.scores.method import ModelMethod
from pathex.scores.options import NaturalOrNone
from pathex.scores.problem import Problem


@dataclass(frozen=True, kw_only=True)
class FisherDiagonal(ModelMethod):
    r"""The diagonal of the Fisher information: the expected cost in likelihood of removing a weight, to second order.

        S_j = theta_j^2 sum_n E_y ( d log p(y | x_n) / dtheta_j )^2,

    the form of Optimal Brain Damage (LeCun, Denker, Solla, NeurIPS 1989) with the Fisher information in place of the
    Hessian, as in Theis et al. (2018). The expectation is over the given label alone (empirical Fisher information), or
    over the labels that the network itself predicts, summed over all classes.

    Attributes:
        labels: ``given``: those of the data (empirical Fisher information); ``model``: every class with the probability
            that the network gives it; needs no labels.
        projections: None: exact up to 4096 backward passes of one image, beyond them 32 random projections; 0: exact;
            P: P random projections, whose relative standard error is at most sqrt(2 / P).
    """

    name = "fisher-diagonal"
    title = "Diagonal of the Fisher information"
    citation = (
        "Theis, Korshunova, Tejani, Huszar: Faster gaze prediction with dense networks and Fisher pruning. "
        "2018, arXiv 1801.05787. At initialization: Gollini Navarrete, Cuadrado Avila, Takac, Horvath: What scalable "
        "second-order information knows for pruning at initialization. CPAL 2026, arXiv 2502.11450. Form: LeCun, "
        "Denker, Solla: Optimal Brain Damage. NeurIPS 1989"
    )
    equation = (
        "S_j = theta_j^2 sum_n E_y (d log p(y|x_n)/dtheta_j)^2, y = y_n (labels='given') or y ~ p(.|x_n) "
        "(labels='model')"
    )
    needs = "labels"
    beside = 32

    labels: Literal["given", "model"] = "given"
    projections: NaturalOrNone = None

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)

        def rows(outputs: Tensor, labels: Any) -> Tensor:
            shape = tuple(outputs.shape)
            if len(shape) < 2 or shape[1] < 2:
                raise InvalidInput(f"{self.name} needs outputs (N, classes, ...) with two classes or more, not {shape}")
            if self.labels == "given":
                return reader.loss_of(outputs, labels, "none").reshape(len(outputs), -1).sum(1)
            # Their squared derivatives are those of the log-probabilities, weighted with the probabilities.
            logs = outputs.log_softmax(1)
            return logs.detach().exp().sqrt() * logs

        return squared_jacobian(reader, rows, self.projections, labels=self.labels == "given")

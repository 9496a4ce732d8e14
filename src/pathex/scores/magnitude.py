"""Magnitude."""

from torch import Tensor

from pathex.scores.method import Method
from pathex.scores.problem import Problem


class Magnitude(Method):
    """Magnitude at initialization: ``S_j = |theta_j|`` (LeCun, Denker, Solla 1989; Han et al. 2015)."""

    name = "magnitude"
    title = "Magnitude"
    citation = (
        "Han, Pool, Tran, Dally: Learning both weights and connections for efficient neural networks. "
        "NeurIPS 2015, arXiv 1506.02626"
    )
    equation = "S_j = |theta_j|"

    def score(self, problem: Problem) -> dict[str, Tensor]:
        return {name: weight.abs() for name, weight in problem.masked().items()}

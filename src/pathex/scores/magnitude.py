r"""Magnitude at initialization: ``S_j = |theta_j|`` (LeCun, Denker, Solla 1989; Han et al. 2015)."""

from torch import Tensor

from pathex.scores._method import Card, Method
from pathex.scores._problem import Problem

__all__ = ["METHOD"]


def _score(problem: Problem) -> dict[str, Tensor]:
    return {name: weight.abs() for name, weight in problem.masked().items()}


METHOD = Method(
    Card(
        name="magnitude",
        title="Magnitude",
        citation="Han, Pool, Tran, Dally: Learning both weights and connections for efficient neural networks. "
        "NeurIPS 2015, arXiv 1506.02626",
        equation="S_j = |theta_j|",
        summed="nothing",
        needs="nothing",
        batchnorm="not used",
        rounds=1,
        cost="no pass",
        holds_for="any network",
        differences="none",
        checked="closed form",
        options={},
    ),
    _score,
)

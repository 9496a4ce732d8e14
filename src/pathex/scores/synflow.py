"""SynFlow."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pathex.errors import InvalidInput
from pathex.graph import ones, untouched
from pathex.paths import PerSample, forward, tensors_of
from pathex.scores.jacobian import gradients
from pathex.scores.method import PathMethod
from pathex.scores.precision import open_sum, safely, with_sum
from pathex.scores.problem import Problem
from pathex.scores.reader import PathReader


def _released(reader: PathReader) -> dict[str, Tensor]:
    model, weights = reader.problem.model, reader.weights()
    state = tensors_of(model, {**reader.other(), **weights}, torch.float64)
    absolute = {name: entry.abs() if entry.is_floating_point() else entry for name, entry in state.items()}
    with torch.enable_grad(), untouched(model):
        leaves = {name: absolute[name].requires_grad_() for name in weights}
        start = ones(reader.problem.images[:1], torch.float64)
        found = gradients(forward(model, start, tensors=absolute, output=reader.output).sum(), leaves)
        return {name: leaf.detach() * found[name] for name, leaf in leaves.items()}


@dataclass(frozen=True, kw_only=True)
class SynFlow(PathMethod):
    r"""SynFlow (Tanaka, Kunin, Yamins, Ganguli, NeurIPS 2020): iterative magnitude of the synaptic flow.

        R = 1^T ( prod_l |theta^l| ) 1,        S_j = |theta_j| dR / d|theta_j|.

    The network with absolute weights and an input of ones; every activation is then the identity.

    Attributes:
        shifts: ``dropped``: no biases, means and shifts; ``released``: absolute state, plain network.
        per_sample: Coefficients that only a sample has (LayerNorm and its like, attention, gates, products of
            branches): ``refuse``, or ``one``: they count 1, products of matrices average.
        tf32: Whether products are taken in TF32 on a GPU, with 10 bits behind the leading one.
        calibration: As in other methods; ``running`` as published.
    """

    name = "synflow"
    title = "SynFlow"
    citation = (
        "Tanaka, Kunin, Yamins, Ganguli: Pruning neural networks without any data by iteratively conserving "
        "synaptic flow. NeurIPS 2020, arXiv 2006.05467"
    )
    equation = "S_j = |theta_j| dR/d|theta_j|, R = sum_k f_k(1; |theta|)"
    rounds = 100
    rounding = "up"
    piecewise_linear = True

    shifts: Literal["dropped", "released"] = "dropped"
    per_sample: PerSample = "refuse"
    tf32: bool = False
    calibration: Literal["batch", "running"] = "running"

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        if self.shifts == "released":
            if self.tf32:
                raise InvalidInput("tf32=True needs shifts='dropped', not 'released'; leave it out")
            return _released(reader.in_float64())
        summed = partial(open_sum, coefficients="absolute", pools="max")
        return safely(problem, lambda each: with_sum(self.reader(each), summed))

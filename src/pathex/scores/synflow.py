r"""SynFlow (Tanaka, Kunin, Yamins, Ganguli, NeurIPS 2020): iterative magnitude of the synaptic flow.

    R = 1^T ( prod_l |theta^l| ) 1,        S_j = |theta_j| dR / d|theta_j|.

The network with absolute weights and an input of ones; every activation is then the identity.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnknownName
from pathex.graph import untouched
from pathex.paths import forward, tensors_of
from pathex.scores._jacobian import gradients
from pathex.scores._method import Card, Method
from pathex.scores._precision import open_sum, safely
from pathex.scores._reader import ON_GPU, OPTIONS, PER_SAMPLE, READING, PathReader

__all__ = ["METHOD"]

Shifts = Literal["dropped", "released"]


def _score(reader: PathReader, *, shifts: Shifts = "dropped") -> dict[str, Tensor]:
    if shifts not in get_args(Shifts):
        raise UnknownName("shifts", shifts, get_args(Shifts))
    if shifts == "released":
        if reader.tf32:
            raise InvalidInput("tf32=True needs shifts='dropped', not 'released'; leave it out")
        return _released(reader.in_float64())
    return safely(reader, _summed, "synflow")


def _summed(reader: PathReader) -> tuple[Tensor, dict[str, Tensor]]:
    total, scores = open_sum(reader, coefficients="absolute", pools="max")
    return total, scores


def _released(reader: PathReader) -> dict[str, Tensor]:
    model, weights = reader.problem.model, reader.weights()
    state = tensors_of(model, {**reader.other(), **weights}, torch.float64)
    absolute = {name: entry.abs() if entry.is_floating_point() else entry for name, entry in state.items()}
    with torch.enable_grad(), untouched(model):
        leaves = {name: absolute[name].requires_grad_() for name in weights}
        ones = torch.ones_like(reader.problem.images[:1], dtype=torch.float64)
        found = gradients(forward(model, ones, tensors=absolute, output=reader.output).sum(), leaves)
        return {name: leaf.detach() * found[name] for name, leaf in leaves.items()}


METHOD = Method(
    Card(
        name="synflow",
        title="SynFlow",
        citation="Tanaka, Kunin, Yamins, Ganguli: Pruning neural networks without any data by iteratively conserving "
        "synaptic flow. NeurIPS 2020, arXiv 2006.05467",
        equation="S_j = |theta_j| dR/d|theta_j|, R = sum_k f_k(1; |theta|)",
        summed="summed over outputs; one input of ones",
        needs="nothing",
        batchnorm="|gamma| / sqrt(var + eps) with the stored variance (calibration='running', as published) or "
        "calibrated ('batch')",
        rounds=100,
        cost="1 forward and backward pass of one input, in float32 where the sum over paths fits; in float64 elsewhere "
        "and with shifts='released'",
        holds_for="homogeneous activations; per-sample coefficients (LayerNorm, attention) have no open reading",
        differences="the released code takes the absolute value of every entry of the state, stored means included, "
        "and keeps shifts: shifts='released'",
        checked="golden scores to 1e-9 (released), brute force to 1e-10 (dropped), conservation per layer on chains",
        options={
            "shifts": "dropped (default): no biases, means and shifts; released: absolute state, plain network",
            **PER_SAMPLE,
            **ON_GPU,
            **OPTIONS,
            "calibration": "running (default): stored statistics, as published; batch: calibrated on the pruning set",
        },
    ),
    _score,
    {**READING, "calibration": "running", "per_sample": "refuse", "tf32": False},
    piecewise_linear=True,
    paths=True,
)

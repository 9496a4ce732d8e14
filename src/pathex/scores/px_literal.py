r"""Path eXclusion as printed: the product of two sums over paths (Iurada, Ciccone, Tommasi, CVPR 2024, Eq. 12-14).

    R = sum_{n,k} ( sum_p a_p(x_n)^2 x_{n,s(p)}^2 ) ( sum_p v_p^2 ),        S_j = theta_j^2 dR / d(theta_j^2).

The first factor is the network of ones with recorded gates and squared input, the second the open network of squared
weights with an input of ones, which is the same for every image. Both are computed in float64: the network of ones
leaves float32 in the first round of a ResNet-20.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pathex.errors import PathexError
from pathex.paths import Moments, Recording, replay, replay_open
from pathex.scores._method import Card, Method
from pathex.scores._reader import OPTIONS, PER_SAMPLE, READING, SMOOTH, TOTAL, PathReader, gradient_scores

__all__ = ["METHOD"]


def _score(reader: PathReader) -> dict[str, Tensor]:
    problem = reader.problem
    tensors = {**reader.other(), **reader.weights()}
    ones = {n: torch.ones_like(p, dtype=torch.float64) for n, p in problem.model.named_parameters()}
    # The masked ones need a gradient, which tells weights that are computed from parameters where these are.
    kept = {name: mask.requires_grad_() for name, mask in problem.masked(ones, torch.float64).items()}
    ones = {name: one.detach() for name, one in ones.items()} | kept
    used: list[Sequence[Moments]] = []

    def part(recorded: Callable[[], tuple[Tensor, Recording]]) -> dict[str, Tensor]:
        x, recording = recorded()
        used.append(recording.statistics)  # the same in all parts
        squared = x.double().square()
        with torch.no_grad():
            out = replay(problem.model, squared, recording, tensors=ones, coefficients="ones", output=reader.output)
        return {TOTAL: out.sum(0, keepdim=True)}

    seen = problem.processes.summed(reader.recordings(tensors), part)[TOTAL]
    wide = reader.in_float64()
    weights = {name: weight.double().requires_grad_() for name, weight in reader.weights().items()}
    start = torch.ones_like(problem.images[:1], dtype=torch.float64)
    with torch.enable_grad():
        reach = replay_open(
            problem.model,
            start,
            statistics=used[0],
            tensors={**wide.other(), **weights},
            per_sample=reader.per_sample,
            output=reader.output,
        )
        total = (reach * seen).sum()
        if not torch.isfinite(total):
            raise PathexError(
                "px-literal: the network of ones leaves float64; use 'px', which agrees in what it measures"
            )
        return gradient_scores(total, weights)


METHOD = Method(
    Card(
        name="px-literal",
        title="Path eXclusion as printed",
        citation="Iurada, Ciccone, Tommasi: Finding Lottery Tickets in Vision Models via Data-driven Spectral "
        "Foresight Pruning. CVPR 2024, arXiv 2406.01820",
        equation="S_j = theta_j^2 dR/d(theta_j^2), R = sum_{n,k} (sum_p a_p(x_n)^2 x_{n,s(p)}^2) (sum_p v_p^2)",
        summed="summed over images, outputs and paths; nothing is averaged",
        needs="images",
        batchnorm="1 in the network of ones; gamma^2 / (var + eps) in the squared network, calibrated through the "
        "masked network (calibration='batch') or stored ('running')",
        rounds=100,
        cost="2 forward passes without gradient (one of them in float64), 1 forward and backward pass of one image",
        holds_for="piecewise-linear activations; per-sample coefficients (LayerNorm, attention) have no open reading",
        differences="with weights of one, data enter only as one number per output: in round one it equals "
        "'synflow-l2' up to a factor, and with stored statistics both keep almost the same weights after 100 rounds "
        "too (rows: benchmarks/rows/literal_overlap-fashion-mini.csv); with calibration the mask feeds back on the "
        "statistics and they drift apart. What the released code computes is 'px-cvpr24'",
        checked="path enumeration to 1e-10 in float64, golden scores to 1e-9",
        options={**SMOOTH, **PER_SAMPLE, **OPTIONS},
    ),
    _score,
    {**READING, "smooth": "secant", "per_sample": "refuse"},
    piecewise_linear=True,
)

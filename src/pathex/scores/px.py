r"""Path eXclusion, data-gated form (Iurada, Ciccone, Tommasi, CVPR 2024).

The trace of the Neural Tangent Kernel, ``||J_v^f(X) J_theta^v||_F^2``, is bounded by the product of what the paths see
of the data and of what the weights put on the paths. Here both are kept together path by path,

    R = sum_n sum_k sum_p a_p(x_n)^2 x_{n,s(p)}^2 v_p^2,        S_j = theta_j^2 dR / d(theta_j^2),

with a the gates of the masked network itself, v the product of the weights along a path and s its start. One recorded
pass, one replayed pass with squared input and squared weights, and its gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pathex.paths import Recording, run_linear
from pathex.scores._method import Card, Method
from pathex.scores._precision import safely
from pathex.scores._reader import ON_GPU, OPTIONS, READING, SMOOTH, TOTAL, PathReader

__all__ = ["METHOD"]


def _score(reader: PathReader) -> dict[str, Tensor]:
    return safely(reader, _summed, "px")


def _summed(reader: PathReader) -> tuple[Tensor, dict[str, Tensor]]:
    tensors = reader.tensors()

    def part(recorded: Callable[[], tuple[Tensor, Recording]]) -> dict[str, Tensor]:
        x, recording = recorded()
        with torch.enable_grad():
            reading = reader.linear(tensors, recording)
            out = run_linear(reading, [x.square()]).sum()
            return {TOTAL: out.detach().double(), **reading.scores(out)}

    scores = reader.problem.processes.summed(reader.recordings(tensors), part)
    return scores.pop(TOTAL), scores


METHOD = Method(
    Card(
        name="px",
        title="Path eXclusion, gated by the data path by path",
        citation="Iurada, Ciccone, Tommasi: Finding Lottery Tickets in Vision Models via Data-driven Spectral "
        "Foresight Pruning. CVPR 2024, arXiv 2406.01820. Form with the gate inside the sum over paths: pathex.",
        equation="S_j = theta_j^2 dR/d(theta_j^2), R = sum_n sum_k sum_p a_p(x_n)^2 x_{n,s(p)}^2 v_p^2",
        summed="summed over images, outputs and paths; nothing is averaged",
        needs="images",
        batchnorm="coefficient gamma / sqrt(var + eps), calibrated on the pruning set through the masked network "
        "(calibration='batch') or stored ('running'); mean and shift act on gates only",
        rounds=100,
        cost="1 forward pass without gradient, 1 forward and backward pass; gates as bytes, activations of one "
        "micro-batch",
        holds_for="piecewise-linear activations. When no two paths use the same set of weights, without biases and "
        "with coefficients held fixed, the scores over theta^2 sum to the NTK trace expected over "
        "independent weight signs. Pools make it an approximation: on a small convolutional network with a global "
        "average pool the expected trace is 1.8 (images of mixed sign) to 2.8 times (positive images) the sum",
        differences="every layer on a path, and each part of a fused one (query, key, gate), keeps at least a "
        "tenth of the density of the whole network and a path through it, unless budget='effective'; ResNet-20 and "
        "VGG-16 at the published sparsities keep more than twice that by themselves. The printed product form is "
        "'px-literal'; what the released code computes is 'px-cvpr24'",
        checked="path enumeration to 1e-10 in float64, golden scores to 1e-9, expected trace by all sign patterns",
        options={**SMOOTH, **ON_GPU, **OPTIONS},
    ),
    _score,
    {**READING, "smooth": "secant", "tf32": False},
    floor=0.1,
    piecewise_linear=True,
    paths=True,
)

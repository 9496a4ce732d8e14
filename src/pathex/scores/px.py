"""Path eXclusion, gated by the data path by path."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pathex.graph import each
from pathex.paths import Smooth, run_linear
from pathex.scores.method import PathMethod
from pathex.scores.precision import safely, with_sum
from pathex.scores.problem import Problem
from pathex.scores.reader import TOTAL, PathReader, Recorded


def _summed(reader: PathReader) -> tuple[Tensor, dict[str, Tensor]]:
    tensors = reader.tensors()

    def part(recorded: Recorded) -> dict[str, Tensor]:
        x, recording = recorded()
        with torch.enable_grad():
            reading = reader.linear(tensors, recording)
            out = run_linear(reading, each(x, torch.square)).sum()
            return {TOTAL: out.detach().double(), **reading.scores(out)}

    scores = reader.problem.processes.sum_over(reader.recordings(tensors), part)
    return scores.pop(TOTAL), scores


@dataclass(frozen=True, kw_only=True)
class PX(PathMethod):
    r"""Path eXclusion, data-gated form (Iurada, Ciccone, Tommasi, CVPR 2024).

    The trace of the Neural Tangent Kernel, ``||J_v^f(X) J_theta^v||_F^2``, is bounded by the product of what the paths
    see of the data and of what the weights put on the paths. Here both are kept together path by path,

        R = sum_n sum_k sum_p a_p(x_n)^2 x_{n,s(p)}^2 v_p^2,        S_j = theta_j^2 dR / d(theta_j^2),

    with a the gates of the masked network itself, v the product of the weights along a path and s its start. One
    recorded pass, one replayed pass with squared input and squared weights, and its gradient.

    Attributes:
        smooth: Coefficient of smooth activations (GELU, SiLU, ...): ``secant`` phi(x)/x, ``tangent`` phi'(x), or
            ``mixed``: the secant on the way and the tangent on the way back, as the kernel has it.
        tf32: Whether products are taken in TF32 on a GPU, with 10 bits behind the leading one.
    """

    name = "px"
    title = "Path eXclusion, gated by the data path by path"
    citation = (
        "Iurada, Ciccone, Tommasi: Finding Lottery Tickets in Vision Models via Data-driven Spectral "
        "Foresight Pruning. CVPR 2024, arXiv 2406.01820. Form with the gate inside the sum over paths: pathex."
    )
    equation = "S_j = theta_j^2 dR/d(theta_j^2), R = sum_n sum_k sum_p a_p(x_n)^2 x_{n,s(p)}^2 v_p^2"
    needs = "images"
    rounds = 100
    floor = 0.1
    piecewise_linear = True

    smooth: Smooth = "secant"
    tf32: bool = False

    def score(self, problem: Problem) -> dict[str, Tensor]:
        return safely(problem, lambda each: with_sum(self.reader(each), _summed))

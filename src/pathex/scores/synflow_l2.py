r"""SynFlow-L2 (Gebhart, Saxena, Schrater 2021): synaptic flow of squared weights, the data-free norm of all paths.

    R = sum_k sum_p v_p^2 = ||paths||^2,        S_j = theta_j^2 dR / d(theta_j^2).

The control of every PX experiment: `px-literal` is this times one number per output.
"""

from torch import Tensor

from pathex.scores._method import Card, Method
from pathex.scores._precision import open_sum, safely
from pathex.scores._reader import ON_GPU, OPTIONS, PER_SAMPLE, READING, PathReader

__all__ = ["METHOD"]


def _score(reader: PathReader) -> dict[str, Tensor]:
    return safely(reader, _summed, "synflow-l2")


def _summed(reader: PathReader) -> tuple[Tensor, dict[str, Tensor]]:
    return open_sum(reader)


METHOD = Method(
    Card(
        name="synflow-l2",
        title="SynFlow-L2, the squared norm of all paths",
        citation="Gebhart, Saxena, Schrater: A unified paths perspective for pruning at initialization. 2021, "
        "arXiv 2101.10552",
        equation="S_j = theta_j^2 dR/d(theta_j^2), R = sum_k sum_p v_p^2",
        summed="summed over outputs and paths; one input of ones",
        needs="images",
        batchnorm="gamma^2 / (var + eps), calibrated as in 'px-literal' (default, needs images) or stored ('running')",
        rounds=100,
        cost="1 forward and backward pass of one input, in float32 where the sum over paths fits, else float64; "
        "with calibration 1 forward pass more",
        holds_for="homogeneous activations; per-sample coefficients (LayerNorm, attention) have no open reading",
        differences="the code released with NTK-SAP multiplies by theta instead of theta^2",
        checked="path enumeration to 1e-10 in float64",
        options={**PER_SAMPLE, **ON_GPU, **OPTIONS},
    ),
    _score,
    {**READING, "per_sample": "refuse", "tf32": False},
    piecewise_linear=True,
    paths=True,
)

r"""The diagonal of the NTK's feature covariance: how strongly each weight moves the outputs, relative to its size.

    S_j = theta_j^2 sum_n sum_k ( df_k(x_n) / dtheta_j )^2.

Without theta_j^2 the sum over all weights is the trace of the Neural Tangent Kernel (Jacot, Gabriel, Hongler, NeurIPS
2018); with it, S_j is the squared change of all outputs when the weight is removed, to first order. By random
projections with independent signs v, ``E[(theta_j d(sum_{n,k} v_nk f_k(x_n)) / dtheta_j)^2] = S_j``.
"""

from torch import Tensor

from pathex.scores._jacobian import PROJECTIONS, squared_jacobian
from pathex.scores._method import Card, Method
from pathex.scores._reader import OPTIONS, READING, ModelReader

__all__ = ["METHOD"]


def _score(reader: ModelReader, *, projections: int | None = None) -> dict[str, Tensor]:
    return squared_jacobian(reader, lambda outputs, _: outputs, projections)


METHOD = Method(
    Card(
        name="ntk-diagonal",
        title="Diagonal of the Neural Tangent Kernel's parameter side",
        citation="Jacot, Gabriel, Hongler: Neural Tangent Kernel: convergence and generalization in neural networks. "
        "NeurIPS 2018, arXiv 1806.07572 (the kernel). Its diagonal over weights as a score: pathex.",
        equation="S_j = theta_j^2 sum_n sum_k (df_k(x_n)/dtheta_j)^2",
        summed="summed over images and outputs; by projections averaged over them",
        needs="images",
        batchnorm="constants calibrated on the pruning set through the masked network (calibration='batch'), stored "
        "('running'), or the statistics of each batch as delivered ('train'), which make its images depend on each "
        "other and the exact sum as many times dearer as a batch has images",
        rounds=1,
        cost="exact: for each image 1 forward pass and as many backward passes as outputs; projections: 1 forward and "
        "backward pass of the pruning set each. Memory: activations of one image (exact) or one micro-batch, one "
        "gradient, two sums in float64",
        holds_for="any network that can be differentiated once; no assumption on activations",
        differences="no published scorer; there is no published number of rounds",
        checked="torch.func.jacrev to 1e-10 in float64; projections equal it to 1e-10 when averaged over all sign "
        "patterns, and stay within their standard error, sqrt(2/P) of each score at most",
        options={
            "projections": PROJECTIONS,
            **OPTIONS,
            "calibration": f"{OPTIONS['calibration']}; train: the statistics of each batch as delivered",
        },
    ),
    _score,
    READING,
    reader=ModelReader,
    beside=32,
)

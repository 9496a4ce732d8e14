"""Diagonal of the Neural Tangent Kernel's parameter side."""

from dataclasses import dataclass

from torch import Tensor

from pathex.scores.jacobian import squared_jacobian
from pathex.scores.method import ModelMethod
from pathex.scores.options import NaturalOrNone
from pathex.scores.problem import Problem


@dataclass(frozen=True, kw_only=True)
class NtkDiagonal(ModelMethod):
    r"""The diagonal of the NTK's feature covariance: how strongly each weight moves the outputs, relative to its size.

        S_j = theta_j^2 sum_n sum_k ( df_k(x_n) / dtheta_j )^2.

    Without theta_j^2 the sum over all weights is the trace of the Neural Tangent Kernel (Jacot, Gabriel, Hongler,
    NeurIPS 2018); with it, S_j is the squared change of all outputs when the weight is removed, to first order. By
    random projections with independent signs v, ``E[(theta_j d(sum_{n,k} v_nk f_k(x_n)) / dtheta_j)^2] = S_j``.

    Attributes:
        projections: None: exact up to 4096 backward passes of one image, beyond them 32 random projections; 0: exact;
            P: P random projections, whose relative standard error is at most sqrt(2 / P).
    """

    name = "ntk-diagonal"
    title = "Diagonal of the Neural Tangent Kernel's parameter side"
    citation = (
        "Jacot, Gabriel, Hongler: Neural Tangent Kernel: convergence and generalization in neural networks. "
        "NeurIPS 2018, arXiv 1806.07572 (the kernel). Its diagonal over weights as a score: pathex."
    )
    equation = "S_j = theta_j^2 sum_n sum_k (df_k(x_n)/dtheta_j)^2"
    needs = "images"
    beside = 32

    projections: NaturalOrNone = None

    def score(self, problem: Problem) -> dict[str, Tensor]:
        return squared_jacobian(self.reader(problem), lambda outputs, _: outputs, self.projections)

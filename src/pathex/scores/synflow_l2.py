"""SynFlow-L2, the squared norm of all paths."""

from dataclasses import dataclass

from torch import Tensor

from pathex.paths import PerSample
from pathex.scores.method import PathMethod
from pathex.scores.precision import open_sum, safely, with_sum
from pathex.scores.problem import Problem


@dataclass(frozen=True, kw_only=True)
class SynFlowL2(PathMethod):
    r"""SynFlow-L2 (Gebhart, Saxena, Schrater 2021): synaptic flow of squared weights, the data-free norm of all paths.

        R = sum_k sum_p v_p^2 = ||paths||^2,        S_j = theta_j^2 dR / d(theta_j^2).

    The control of every PX experiment: `px-literal` is this times one number per output.

    Attributes:
        per_sample: Coefficients that only a sample has (LayerNorm and its like, attention, gates, products of
            branches): ``refuse``, or ``one``: they count 1, products of matrices average.
        tf32: Whether products are taken in TF32 on a GPU, with 10 bits behind the leading one.
    """

    name = "synflow-l2"
    title = "SynFlow-L2, the squared norm of all paths"
    citation = (
        "Gebhart, Saxena, Schrater: A unified paths perspective for pruning at initialization. 2021, arXiv 2101.10552"
    )
    equation = "S_j = theta_j^2 dR/d(theta_j^2), R = sum_k sum_p v_p^2"
    needs = "images"
    rounds = 100
    piecewise_linear = True

    per_sample: PerSample = "refuse"
    tf32: bool = False

    def score(self, problem: Problem) -> dict[str, Tensor]:
        return safely(problem, lambda each: with_sum(self.reader(each), open_sum))

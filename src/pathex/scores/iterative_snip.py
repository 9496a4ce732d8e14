r"""Iterative SNIP (de Jorge et al., ICLR 2021; Verdenius et al. 2020): SNIP's score, recomputed as the network shrinks.

S_j = |theta_j dL/dtheta_j| of the masked network, in every round; a pruned weight never returns.
"""

from torch import Tensor

from pathex.scores._loss import require_labels
from pathex.scores._method import Card, Method
from pathex.scores._reader import MODEL_OPTIONS, MODEL_READING, ModelReader
from pathex.scores.snip import connection_sensitivity

__all__ = ["METHOD"]


def _score(reader: ModelReader) -> dict[str, Tensor]:
    require_labels(reader, "iterative-snip")
    return connection_sensitivity(reader)


METHOD = Method(
    Card(
        name="iterative-snip",
        title="Iterative SNIP",
        citation="de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive skeletonization: trimming more fat from a "
        "network at initialization. ICLR 2021, arXiv 2006.09081",
        equation="S_j = |theta_j dL/dtheta_j| at the masked weights, L the mean cross-entropy",
        summed="L is the mean over the whole pruning set (over the pixels with a class, in segmentation); the absolute "
        "value is taken once a round",
        needs="labels",
        batchnorm="statistics of each batch as delivered through the masked network (calibration='train'); 'batch' and "
        "'running' take fixed ones",
        rounds=60,
        cost="in each round 1 forward and backward pass; activations of one batch as delivered (of one micro-batch "
        "with calibration='batch' or 'running')",
        holds_for="any differentiable network and loss; first order in the mask. Dropout is off. What starts at zero "
        "is read as one (scales)",
        differences="the released code draws another augmented batch in every round and takes F.nll_loss of outputs "
        "that are logits, minus the true logit instead of cross-entropy (loss=torch.nn.functional.nll_loss here); it "
        "keeps every score equal to the threshold and rounds the number of kept weights down. Its 60 rounds are "
        "those of its published commands; comparisons by others use 100",
        checked="equal to SNIP of the masked network, which has the golden scores; nested masks",
        options=MODEL_OPTIONS,
    ),
    _score,
    MODEL_READING,
    reader=ModelReader,
)

r"""FORCE, foresight connection sensitivity (de Jorge et al., ICLR 2021): the sensitivity after pruning.

    S_j = |theta_j dL/dtheta_j|, the gradient at the masked weights c * theta, theta_j the weight itself.

The gradient reaches pruned weights too, so that those that the sparse network would use come back in a later round.
"""

from dataclasses import replace

from torch import Tensor

from pathex.scores._loss import loss_gradient, require_labels
from pathex.scores._method import Card, Method
from pathex.scores._reader import MODEL_OPTIONS, MODEL_READING, ModelReader

__all__ = ["METHOD"]


def _score(reader: ModelReader) -> dict[str, Tensor]:
    require_labels(reader, "force")
    weights = {name: weight.requires_grad_() for name, weight in reader.weights().items()}
    tensors = {**reader.other(), **weights}
    gradient = loss_gradient(reader, weights, tensors, reader.statistics(tensors))
    own = replace(reader, problem=replace(reader.problem, mask=None)).weights()
    return {name: (weight * gradient[name]).abs() for name, weight in own.items()}


METHOD = Method(
    Card(
        name="force",
        title="FORCE, foresight connection sensitivity",
        citation="de Jorge, Sanyal, Behl, Torr, Rogez, Dokania: Progressive skeletonization: trimming more fat from a "
        "network at initialization. ICLR 2021, arXiv 2006.09081",
        equation="S_j = |theta_j (dL/dtheta_j at c theta)|, c the mask of the round before, theta_j not masked",
        summed="L is the mean over the whole pruning set (over the pixels with a class, in segmentation); the absolute "
        "value is taken once a round",
        needs="labels",
        batchnorm="statistics of each batch as delivered through the masked network (calibration='train'); 'batch' and "
        "'running' take fixed ones",
        rounds=60,
        cost="in each round 1 forward and backward pass; activations of one batch as delivered (of one micro-batch "
        "with calibration='batch' or 'running'), and a second copy of the weights",
        holds_for="any differentiable network and loss; first order in the mask. Pruned weights have scores too and "
        "may return, except those that the start mask removed. Dropout is off. What starts at zero is read as one "
        "(scales)",
        differences="the released code draws another augmented batch in every round and takes F.nll_loss of outputs "
        "that are logits, minus the true logit instead of cross-entropy (loss=torch.nn.functional.nll_loss here); it "
        "keeps every score equal to the threshold and rounds the number of kept weights down. Its 60 rounds are "
        "those of its published commands",
        checked="the derivative of the loss when a pruned weight is put back, by central differences to 1e-5; a copied "
        "network to 1e-10; SNIP's scores where nothing is pruned",
        options=MODEL_OPTIONS,
    ),
    _score,
    MODEL_READING,
    reader=ModelReader,
    revives=True,
    beside=20,
)

r"""SNIP (Lee, Ajanthan, Torr, ICLR 2019): the sensitivity of the loss to the presence of a connection.

S_j = |dL / dc_j| = |theta_j dL/dtheta_j|        with weights c * theta at c = mask.
"""

from torch import Tensor

from pathex.scores._loss import loss_gradient, require_labels
from pathex.scores._method import Card, Method
from pathex.scores._reader import MODEL_OPTIONS, MODEL_READING, ModelReader

__all__ = ["METHOD", "connection_sensitivity"]


def connection_sensitivity(reader: ModelReader) -> dict[str, Tensor]:
    """The absolute derivative of the mean loss with respect to the mask, at the mask.

    Args:
        reader: How the network is run.

    Returns:
        Name to score; zero where the mask removed the weight.
    """
    weights = {name: weight.requires_grad_() for name, weight in reader.weights().items()}
    tensors = {**reader.other(), **weights}
    gradient = loss_gradient(reader, weights, tensors, reader.statistics(tensors))
    return {name: gradient[name].mul_(weight.detach()).abs_() for name, weight in weights.items()}


def _score(reader: ModelReader) -> dict[str, Tensor]:
    require_labels(reader, "snip")
    return connection_sensitivity(reader)


METHOD = Method(
    Card(
        name="snip",
        title="SNIP, connection sensitivity",
        citation="Lee, Ajanthan, Torr: SNIP: Single-shot network pruning based on connection sensitivity. ICLR 2019, "
        "arXiv 1810.02340",
        equation="S_j = |dL/dc_j| = |theta_j dL/dtheta_j|, L the mean cross-entropy with weights c theta",
        summed="L is the mean over the whole pruning set (over the pixels with a class, in segmentation); the absolute "
        "value is taken once, of the gradient of that mean",
        needs="labels",
        batchnorm="statistics of each batch as delivered, gradients flow through them (calibration='train'): scores "
        "depend on how the images are batched; 'batch' and 'running' take fixed statistics, and then they do not",
        rounds=1,
        cost="1 forward and backward pass; activations of one batch as delivered (of one micro-batch with "
        "calibration='batch' or 'running')",
        holds_for="any differentiable network and loss; first order in the mask. Dropout is off. What starts at zero "
        "is read as one (scales)",
        differences="the authors' TensorFlow code prunes biases too, divides scores by their sum (the kept set is the "
        "same), reads one batch of 100 or 128 images and feeds BatchNorm its stored statistics, mean 0 and "
        "variance 1 (calibration='running' here; ports to PyTorch use those of the batch). Code released with later "
        "papers lets pruned weights return over several rounds; here they stay pruned",
        checked="golden scores to 1e-9, central differences in the mask to 1e-5, mask derivatives of a copied network "
        "to 1e-10",
        options=MODEL_OPTIONS,
    ),
    _score,
    MODEL_READING,
    reader=ModelReader,
)

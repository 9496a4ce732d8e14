r"""The diagonal of the Fisher information: the expected cost in likelihood of removing a weight, to second order.

    S_j = theta_j^2 sum_n E_y ( d log p(y | x_n) / dtheta_j )^2,

the form of Optimal Brain Damage (LeCun, Denker, Solla, NeurIPS 1989) with the Fisher information in place of the
Hessian, as in Theis et al. (2018). The expectation is over the given label alone (empirical Fisher information), or
over the labels that the network itself predicts, summed over all classes.
"""

from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from pathex.errors import InvalidInput, UnknownName
from pathex.scores._jacobian import PROJECTIONS, Rows, squared_jacobian
from pathex.scores._loss import require_labels
from pathex.scores._method import Card, Method
from pathex.scores._reader import IGNORED, OPTIONS, READING, ModelReader

__all__ = ["METHOD"]

Labels = Literal["given", "model"]


def _score(reader: ModelReader, *, labels: Labels = "given", projections: int | None = None) -> dict[str, Tensor]:
    if labels not in get_args(Labels):
        raise UnknownName("labels", labels, get_args(Labels))
    if labels == "given":
        require_labels(reader, "fisher-diagonal")
    rows: Rows = _given(reader) if labels == "given" else _model
    return squared_jacobian(reader, rows, projections, labels=labels == "given")


def _given(reader: ModelReader) -> Rows:
    def rows(outputs: Tensor, labels: Any) -> Tensor:
        _check(outputs)
        labels = reader.fitting(outputs, labels)
        if labels.is_floating_point():
            each = F.cross_entropy(outputs, labels.to(outputs.dtype), reduction="none")
        else:
            ignored = IGNORED if labels.dim() > 1 else -100
            each = F.cross_entropy(outputs, labels, reduction="none", ignore_index=ignored)
        return each.reshape(len(outputs), -1).sum(1)

    return rows


def _model(outputs: Tensor, _: Any) -> Tensor:
    """Rows whose squared derivatives are those of the log-probabilities, weighted with the probabilities."""
    _check(outputs)
    logs = outputs.log_softmax(1)
    return logs.detach().exp().sqrt() * logs


def _check(outputs: Tensor) -> None:
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        shape = tuple(outputs.shape)
        raise InvalidInput(f"fisher-diagonal needs outputs (N, classes, ...) with two classes or more, not {shape}")


METHOD = Method(
    Card(
        name="fisher-diagonal",
        title="Diagonal of the Fisher information",
        citation="Theis, Korshunova, Tejani, Huszar: Faster gaze prediction with dense networks and Fisher pruning. "
        "2018, arXiv 1801.05787. At initialization: Gollini Navarrete, Cuadrado Avila, Takac, Horvath: What scalable "
        "second-order information knows for pruning at initialization. CPAL 2026, arXiv 2502.11450. Form: LeCun, "
        "Denker, Solla: Optimal Brain Damage. NeurIPS 1989",
        equation="S_j = theta_j^2 sum_n E_y (d log p(y|x_n)/dtheta_j)^2, y = y_n (labels='given') or y ~ p(.|x_n) "
        "(labels='model')",
        summed="summed over images; with labels='model' also over classes with their probabilities. The "
        "log-likelihood of a segmented image is summed over its labelled pixels",
        needs="labels",
        batchnorm="constants calibrated on the pruning set through the masked network (calibration='batch'), stored "
        "('running'), or the statistics of each batch as delivered ('train'), which make its images depend on each "
        "other and the exact sum as many times dearer as a batch has images",
        rounds=1,
        cost="exact: for each image 1 forward pass and 1 backward pass (given) or as many as classes (model); "
        "projections: 1 forward and backward pass of the pruning set each. Memory: activations of one image (exact) "
        "or one micro-batch, one gradient, two sums in float64",
        holds_for="classifiers with softmax, of images or pixels; any activation. It equals the Hessian of the loss "
        "where the network fits the labels, which it does not at initialization",
        differences="the code of Gollini Navarrete et al. halves and averages (the same ranking), squares the mean "
        "gradient of each batch (the same for batches of one image), never scores the last layer, and uses stored "
        "BatchNorm statistics after a warm-up over the training set",
        checked="torch.func.jacrev of every log-probability to 1e-10 in float64, both kinds of labels",
        options={
            "labels": "given (default): those of the data (empirical Fisher information); model: every class with the "
            "probability that the network gives it; needs no labels",
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

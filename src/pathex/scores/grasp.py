r"""GraSP (Wang, Zhang, Grosse, ICLR 2020): what a weight contributes to the gradient flow.

    g = dL/dtheta,    S_j = theta_j (H g)_j,    H the Hessian of L.

To first order, removing weight j takes 2 S_j from the squared norm of the gradient, as ``grad (|g|^2 / 2) = H g``.
Scores may be negative: such a weight dampens the flow and goes first.
"""

import math
import numbers
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.scores._loss import loss_gradient, loss_terms, require_labels, require_second_derivatives
from pathex.scores._method import Card, Method
from pathex.scores._reader import MODEL_OPTIONS, MODEL_READING, ModelReader

__all__ = ["METHOD"]


def _score(reader: ModelReader, *, temperature: float = 200.0) -> dict[str, Tensor]:
    positive = isinstance(temperature, numbers.Real) and not isinstance(temperature, bool) and temperature > 0
    if not positive or not math.isfinite(temperature):
        raise InvalidInput(f"temperature must be a positive number, not {temperature!r}")
    require_labels(reader, "grasp")
    weights = {name: weight.requires_grad_() for name, weight in reader.weights().items()}
    tensors = {**reader.other(), **weights}
    statistics = reader.statistics(tensors)
    gradient = loss_gradient(reader, weights, tensors, statistics, temperature)
    if reader.problem.mask is not None:
        # Pruned weights do not train: their part of the gradient is no flow.
        gradient = {name: part * reader.problem.mask[name].to(part) for name, part in gradient.items()}
    part = _hessian_product(weights, gradient)
    product = reader.problem.processes.summed(loss_terms(reader, tensors, statistics, temperature), part)
    return {name: weight.detach() * product[name] for name, weight in weights.items()}


def _hessian_product(
    weights: Mapping[str, Tensor], vector: Mapping[str, Tensor]
) -> Callable[[Callable[[], Tensor]], dict[str, Tensor]]:
    """A function from a term to its Hessian with respect to all weights, times a vector."""
    leaves = list(weights.values())

    def part(term: Callable[[], Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            first = torch.autograd.grad(term(), leaves, create_graph=True, allow_unused=True)
            along = [(part * vector[n]).sum() for n, part in zip(weights, first, strict=True) if part is not None]
            slope = torch.stack(along).sum()
        if not slope.requires_grad:  # a loss that is linear in the weights has no curvature
            return {name: torch.zeros_like(weight) for name, weight in weights.items()}
        require_second_derivatives(slope, "grasp")
        try:
            second = torch.autograd.grad(slope, leaves, materialize_grads=True)
        except RuntimeError as error:
            if not any(reason in str(error) for reason in ("not implemented", "not supported")):
                raise
            raise UnsupportedOperation(f"grasp needs second derivatives: {str(error).splitlines()[0]}") from error
        return dict(zip(weights, second, strict=True))

    return part


METHOD = Method(
    Card(
        name="grasp",
        title="GraSP, gradient signal preservation",
        citation="Wang, Zhang, Grosse: Picking winning tickets before training by preserving gradient flow. ICLR 2020, "
        "arXiv 2002.07376",
        equation="S_j = theta_j (H g)_j, g = dL/dtheta, H = d^2L/dtheta^2, L the mean cross-entropy of outputs / "
        "temperature; higher is kept",
        summed="L is the mean over the whole pruning set (over the pixels with a class, in segmentation). One gradient "
        "over the whole set in both factors: g is accumulated over all batches first, then H g. Both run over the "
        "weights that the mask keeps",
        needs="labels",
        batchnorm="statistics of each batch as delivered, first and second derivatives flow through them "
        "(calibration='train'), the same in both factors; 'batch' and 'running' take fixed statistics",
        rounds=1,
        cost="2 forward and backward passes and 1 backward pass through the second; activations and the graph of the "
        "gradient of one batch as delivered (of one micro-batch with calibration='batch' or 'running'), more than a "
        "training step keeps",
        holds_for="any network whose operations have second derivatives (attention runs on torch's own products); "
        "first order in the mask. ReLU counts as linear on each side. Dropout is off. What starts at zero is read as "
        "one (scales)",
        differences="the released code scores -theta H g and removes the highest, which is the same order; redraws the "
        "linear layers (Xavier) in the copy that it scores, so scores belong to other weights than those trained; "
        "splits its images (10 a class in its commands) into two batches and sums over them instead of averaging; "
        "leaves dropout on; where scores tie with the threshold it keeps them all. It is one-shot; with rounds > 1 the "
        "masked network is scored anew in each",
        checked="golden scores to 1e-9, central differences of the gradient norm to 1e-5, the Hessian written out to "
        "1e-10",
        options={
            "temperature": "the outputs are divided by it before the loss (default 200, as released)",
            **MODEL_OPTIONS,
        },
    ),
    _score,
    MODEL_READING,
    reader=ModelReader,
    beside=20,
)

"""GraSP, gradient signal preservation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pathex.errors import UnsupportedOperation
from pathex.scores.loss import loss_gradient, loss_terms, require_labels, require_second_derivatives
from pathex.scores.method import LossMethod
from pathex.scores.options import Positive
from pathex.scores.problem import Problem


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


@dataclass(frozen=True, kw_only=True)
class Grasp(LossMethod):
    r"""GraSP (Wang, Zhang, Grosse, ICLR 2020): what a weight contributes to the gradient flow.

        g = dL/dtheta,    S_j = theta_j (H g)_j,    H the Hessian of L.

    To first order, removing weight j takes 2 S_j from the squared norm of the gradient, as ``grad (|g|^2 / 2) = H g``.
    Scores may be negative: such a weight dampens the flow and goes first.

    Reads images and labels. Published rounds: 1.

    Attributes:
        temperature: The outputs are divided by it before the loss, as released.
    """

    name = "grasp"
    title = "GraSP, gradient signal preservation"
    citation = (
        "Wang, Zhang, Grosse: Picking winning tickets before training by preserving gradient flow. ICLR 2020, "
        "arXiv 2002.07376"
    )
    equation = (
        "S_j = theta_j (H g)_j, g = dL/dtheta, H = d^2L/dtheta^2, L the mean cross-entropy of outputs / "
        "temperature; higher is kept"
    )
    beside = 20

    temperature: Positive = 200.0

    def score(self, problem: Problem) -> dict[str, Tensor]:
        reader = self.reader(problem)
        require_labels(reader, self.name)
        weights = {name: weight.requires_grad_() for name, weight in reader.weights().items()}
        tensors = {**reader.other(), **weights}
        statistics = reader.statistics(tensors)
        gradient = loss_gradient(reader, weights, tensors, statistics, self.temperature)
        if problem.mask is not None:
            # Pruned weights do not train: their part of the gradient is no flow.
            gradient = {name: part * problem.mask[name].to(part) for name, part in gradient.items()}
        part = _hessian_product(weights, gradient)
        product = problem.processes.sum_over(loss_terms(reader, tensors, statistics, self.temperature), part)
        return {name: weight.detach() * product[name] for name, weight in weights.items()}

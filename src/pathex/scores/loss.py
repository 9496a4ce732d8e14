"""The mean loss over a pruning set, batch by batch, and its derivatives with respect to the weights."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import Images
from pathex.scores.jacobian import differentiable_twice
from pathex.scores.model_reader import Leaves, ModelReader, has_class
from pathex.scores.problem import Problem

Term = Callable[[], Tensor]


def _terms(reader: ModelReader, at: Leaves, temperature: float) -> Iterator[Term]:
    """The mean loss over the whole pruning set as a sum of one term a batch."""
    # Every image has the same weight, or every pixel that has a class, however the images are batched. A term has a
    # graph if gradients are enabled where it is computed.
    reader.require_labels()
    whole = sum(_counted(reader, y) for _, y in reader.problem.batches if y is not None)
    if not whole:
        raise InvalidInput("no label stands for a class (-100 stands for none, in label maps 255 too)")

    def term(x: Images, y: Tensor) -> Tensor:
        outputs = reader.forward(x, at.tensors, at.statistics) / temperature
        return reader.loss_of(outputs, y) * (_counted(reader, y) / whole)

    for x, y in reader.batches():
        if _counted(reader, y):
            yield partial(term, x, y)


def _counted(reader: ModelReader, labels: Tensor) -> int:
    """What the mean of a batch runs over: images, or pixels with a class."""
    if reader.loss == "cross-entropy" and not labels.is_floating_point():
        return int(has_class(labels).sum())
    return len(labels)


def loss_gradient(reader: ModelReader, at: Leaves, temperature: float = 1.0) -> dict[str, Tensor]:
    """The gradient of the mean loss over the whole pruning set."""

    def part(term: Term) -> dict[str, Tensor]:
        with torch.enable_grad():
            loss = term()
            if not loss.requires_grad:
                raise InvalidInput("the loss depends on no prunable weight; name another output with output=")
            grads = torch.autograd.grad(loss, list(at.weights.values()), materialize_grads=True)
        return dict(zip(at.weights, grads, strict=True))

    return reader.problem.processes.sum_over(_terms(reader, at, temperature), part)


def kept_part(problem: Problem, direction: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an optimizer that holds the mask does of a step: pruned weights stay zero."""
    mask = problem.mask or {}
    return {name: part * mask[name].to(part) if name in mask else part for name, part in direction.items()}


def hessian_product(
    reader: ModelReader, at: Leaves, vector: Mapping[str, Tensor], temperature: float = 1.0, instead: str = ""
) -> dict[str, Tensor]:
    """The Hessian of the mean loss times a vector; errors name what would do ``instead`` of second derivatives."""
    leaves, needs = list(at.weights.values()), f"{reader.method} needs second derivatives{instead}"

    def part(term: Term) -> dict[str, Tensor]:
        with torch.enable_grad():
            first = torch.autograd.grad(term(), leaves, create_graph=True, allow_unused=True)
            along = [(part * vector[n]).sum() for n, part in zip(at.weights, first, strict=True) if part is not None]
            slope = torch.stack(along).sum()
        if not slope.requires_grad:  # a loss that is linear in the weights has no curvature
            return {name: torch.zeros_like(weight) for name, weight in at.weights.items()}
        _refuse_once_differentiable(slope, needs)
        with differentiable_twice(needs):
            second = torch.autograd.grad(slope, leaves, materialize_grads=True)
        return dict(zip(at.weights, second, strict=True))

    return reader.problem.processes.sum_over(_terms(reader, at, temperature), part)


def _refuse_once_differentiable(value: Tensor, needs: str) -> None:
    # ``torch.autograd.grad`` passes over a function that can be differentiated once only in silence: what it returns is
    # then wrong.
    seen, open_nodes = set(), [value.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            open_nodes += [parent for parent, _ in node.next_functions]
    if any(node.name() == "torch::autograd::Error" for node in seen):
        custom = {node.name() for node in seen if isinstance(node, torch.autograd.function.BackwardCFunction)}
        raise UnsupportedOperation(
            f"{needs}; a custom function can be differentiated once only, one of {', '.join(sorted(custom))}"
        )

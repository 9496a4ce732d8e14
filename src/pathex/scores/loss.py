"""The mean loss over a pruning set, batch by batch, and its gradient with respect to the weights."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.paths import Statistics
from pathex.scores.model_reader import IGNORED, ModelReader


def require_labels(reader: ModelReader, method: str) -> None:
    """Refuse a pruning set without labels."""
    if any(y is None for _, y in reader.problem.batches):
        raise InvalidInput(f"method {method!r} needs labels: data must deliver (x, y), not x alone")


def loss_terms(
    reader: ModelReader,
    tensors: Mapping[str, Tensor],
    statistics: Statistics,
    temperature: float = 1.0,
) -> Iterator[Callable[[], Tensor]]:
    """The mean loss over the whole pruning set as a sum of one term a batch."""
    # Every image has the same weight, or every pixel that has a class, however the images are batched. A term has a
    # graph if gradients are enabled where it is computed.

    def term(x: Tensor, y: Tensor) -> Tensor:
        outputs = reader.forward(x, tensors, statistics) / temperature
        return reader.loss_of(outputs, y) * (_counted(reader, y) / whole)

    whole = sum(_counted(reader, y) for _, y in reader.problem.batches if y is not None)
    if not whole:
        raise InvalidInput(f"every label is {IGNORED}, which stands for no class")
    for x, y in reader.batches():
        if _counted(reader, y):
            yield partial(term, x, y)


def _counted(reader: ModelReader, labels: Tensor) -> int:
    """What the mean of a batch runs over: images, or pixels with a class."""
    if reader.loss is None and labels.dim() > 1 and not labels.is_floating_point():
        return int((labels != IGNORED).sum())
    return len(labels)


def loss_gradient(
    reader: ModelReader,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    statistics: Statistics,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """The gradient of the mean loss over the whole pruning set."""

    def part(term: Callable[[], Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            loss = term()
            if not loss.requires_grad:
                raise InvalidInput("the loss depends on no prunable weight; name another output with output=")
            grads = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        return dict(zip(weights, grads, strict=True))

    return reader.problem.processes.sum_over(loss_terms(reader, tensors, statistics, temperature), part)


def require_second_derivatives(value: Tensor, method: str) -> None:
    """Refuse a graph with a function that can be differentiated once only."""
    # ``torch.autograd.grad`` passes over such a function in silence: what it returns is then wrong.
    seen, open_nodes = set(), [value.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            open_nodes += [parent for parent, _ in node.next_functions]
    if any(node.name() == "torch::autograd::Error" for node in seen):
        custom = {node.name() for node in seen if isinstance(node, torch.autograd.function.BackwardCFunction)}
        raise UnsupportedOperation(
            f"{method} needs second derivatives; a custom function can be differentiated once only, one of "
            f"{', '.join(sorted(custom))}"
        )

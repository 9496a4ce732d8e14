"""The mean loss over a pruning set, batch by batch, and its derivatives with respect to the weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import Images
from pathex.scores.jacobian import differentiable_twice
from pathex.scores.model_reader import Leaves, ModelReader, has_class
from pathex.scores.problem import Problem, generator, signs

Term = Callable[[], Tensor]


def _terms(reader: ModelReader, at: Leaves, temperature: float, *, apart: bool = False) -> Iterator[Term]:
    """The mean loss over the whole pruning set as a sum of one term a batch, or an image if they can be taken apart."""
    # Every image has the same weight, or every pixel that has a class, however the images are batched. A term has a
    # graph if gradients are enabled where it is computed.
    reader.require_labels()
    whole = sum(_counted(reader, y) for _, y in reader.problem.batches if y is not None)
    if not whole:
        raise InvalidInput("no label stands for a class (-100 stands for none, in label maps 255 too)")

    def term(x: Images, y: Tensor) -> Tensor:
        outputs = reader.forward(x, at.tensors, at.statistics) / temperature
        loss = reader.loss_of(outputs, y) * (_counted(reader, y) / whole)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise InvalidInput("the loss depends on no prunable weight; name another output with output=")
        return loss

    for batch in reader.batches():
        size = 1 if apart and reader.calibration != "train" else len(batch[0])
        for x, y in zip(*(each.split(size) for each in batch), strict=True):
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
            grads = torch.autograd.grad(term(), list(at.weights.values()), materialize_grads=True)
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

    def part(term: Term) -> dict[str, Tensor]:
        return _products(reader, at, term, [vector], instead)

    return reader.problem.processes.sum_over(_terms(reader, at, temperature), part)


def hessian_diagonal(reader: ModelReader, at: Leaves, samples: int, temperature: float = 1.0) -> dict[str, Tensor]:
    """An unbiased estimate of the diagonal of the Hessian of the mean loss: the mean of z (H z) over signs z."""
    # For each image signs of its own, by seed, round and canonical order.
    problem = reader.problem

    def part(numbered: tuple[int, Term]) -> dict[str, Tensor]:
        source = generator(problem.seed, problem.round, numbered[0])
        drawn = [{name: signs(weight, source) for name, weight in at.weights.items()} for _ in range(samples)]
        return _products(reader, at, numbered[1], drawn, weighted=True)

    summed = problem.processes.sum_over(enumerate(_terms(reader, at, temperature, apart=True), 1), part)
    return {name: each / samples for name, each in summed.items()}


def _products(
    reader: ModelReader, at: Leaves, term: Term, vectors: Sequence[Mapping[str, Tensor]], instead: str = "",
    *, weighted: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """The sum of the Hessian of a term times each vector, perhaps weighted by its entries."""
    leaves, needs = list(at.weights.values()), f"{reader.method} needs second derivatives{instead}"
    sums = {name: torch.zeros_like(weight) for name, weight in at.weights.items()}
    with torch.enable_grad():
        first = torch.autograd.grad(term(), leaves, create_graph=True, allow_unused=True)
    for number, vector in enumerate(vectors, 1):
        with torch.enable_grad():
            along = [(part * vector[n]).sum() for n, part in zip(at.weights, first, strict=True) if part is not None]
            slope = torch.stack(along).sum()
        if not slope.requires_grad:  # a loss that is linear in the weights has no curvature
            break
        _refuse_once_differentiable(slope, needs)
        with differentiable_twice(needs):
            second = torch.autograd.grad(slope, leaves, materialize_grads=True, retain_graph=number < len(vectors))
        for name, part in zip(sums, second, strict=True):
            sums[name] += part * vector[name] if weighted else part
    return sums


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

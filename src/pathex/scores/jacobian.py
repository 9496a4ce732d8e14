"""Squared derivatives of many rows (outputs of images, log-likelihoods), summed: exactly or by random projections."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import Images, Tensors
from pathex.scores.model_reader import ModelReader
from pathex.scores.problem import generator, signs

Rows = Callable[[Tensor, Any], Tensor]
"""From outputs ``(B, ...)`` and labels to the numbers ``(B, ...)`` whose derivatives are squared."""

# Backward passes of one image up to which the exact sum is the default, and the projections beyond them.
_EXACT_UP_TO = 4096
_PROJECTIONS = 32


def squared_jacobian(
    reader: ModelReader, rows: Rows, projections: int | None, *, labels: bool = False
) -> dict[str, Tensor]:
    """``theta_j^2 sum_r (d row_r / d theta_j)^2`` over the rows of the whole pruning set."""
    # Projections take the mean over signs v of ``(theta_j d(sum_r v_r row_r) / d theta_j)^2``, which is unbiased and
    # has a variance of at most twice its squared mean. They are drawn by seed and round, image after image in canonical
    # order, so that neither batches nor memory change them. Squares are summed in float64.
    network = _Network(reader, rows, labels)
    if projections is None:
        projections = 0 if network.exact_passes() <= _EXACT_UP_TO else _PROJECTIONS
    squares = network.projected(projections) if projections else network.exact()
    return {name: weight.detach().double().square() * squares[name] for name, weight in network.at.weights.items()}


def gradients(
    total: Tensor, leaves: Tensors, *, weights: Tensor | None = None, keep: bool = False, create: bool = False
) -> dict[str, Tensor]:
    """Derivatives with respect to leaves, zero where there is none."""
    if not total.requires_grad:
        raise InvalidInput("the output that counts depends on no prunable weight; name another output with output=")
    graph = {"retain_graph": keep or create, "create_graph": create}
    found = torch.autograd.grad(total, list(leaves.values()), weights, materialize_grads=True, **graph)
    return dict(zip(leaves, found, strict=True))


@contextlib.contextmanager
def differentiable_twice(needs: str) -> Iterator[None]:
    """Name what needs second derivatives where torch says that it has none of an operation."""
    try:
        yield
    except RuntimeError as error:
        phrases = ("not implemented", "not supported", "differentiate twice", "not have been used")
        if not any(phrase in str(error) for phrase in phrases):
            raise
        raise UnsupportedOperation(f"{needs}: {str(error).strip().splitlines()[0]}") from error


class _Network:
    """The rows of a reader's network as functions of its weights."""

    def __init__(self, reader: ModelReader, rows: Rows, labels: bool) -> None:
        self.reader, self.rows, self.labels, self.at = reader, rows, labels, reader.leaves()

    def _rows(self, x: Images, y: Any) -> Tensor:
        return self.rows(self.reader.forward(x, self.at.tensors, self.at.statistics), y)

    def _independent(self) -> Iterator[tuple[Images, Any]]:
        """Parts of the pruning set that do not depend on each other: images, or whole batches in train mode."""
        for x, y in self.reader.batches(labels=self.labels):
            if self.reader.calibration == "train":
                yield x, y
            else:
                yield from zip(x.split(1), [None] * len(x) if y is None else y.split(1), strict=True)

    def exact_passes(self) -> int:
        """Backward passes of one image that the exact sum takes."""
        x, y = next(self._independent())
        with torch.no_grad():
            rows = self._rows(x, y).numel()
        return rows * sum(len(images) for images, _ in self.reader.problem.batches)

    def exact(self) -> dict[str, Tensor]:
        """Sum of squared derivatives, row after row."""

        def part(images: tuple[Images, Any]) -> dict[str, Tensor]:
            sums: dict[str, Tensor] = {}
            with torch.enable_grad():
                rows = self._rows(*images).flatten()
            for row in rows:
                for name, derivative in gradients(row, self.at.weights, keep=True).items():
                    # Not squared in place: two weights may have one tensor as their derivative.
                    square = derivative.double().square()
                    sums[name] = sums[name].add_(square) if name in sums else square
            return sums

        return self.reader.problem.processes.sum_over(self._independent(), part)

    def projected(self, count: int) -> dict[str, Tensor]:
        """Mean over random signs of the squared derivative of the signed sum of all rows."""
        problem = self.reader.problem

        def part(number: int) -> dict[str, Tensor]:
            source = generator(problem.seed, problem.round, number)
            whole = {name: torch.zeros_like(weight) for name, weight in self.at.weights.items()}
            for x, y in self.reader.batches(labels=self.labels):
                with torch.enable_grad():
                    rows = self._rows(x, y)
                for name, derivative in gradients(rows, self.at.weights, weights=signs(rows, source)).items():
                    whole[name] += derivative
            return {name: derivative.double().square_().div_(count) for name, derivative in whole.items()}

        return problem.processes.sum_over(range(1, count + 1), part)

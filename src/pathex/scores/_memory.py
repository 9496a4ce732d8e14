"""What one more image costs of memory, measured where it is used: on a pass with one image and one with two.

Every tensor that PyTorch makes in a pass is followed until its memory is free again. What is as large with two images
as with one belongs to the weights; the rest grows with the images, and its peak is what one image costs.
"""

import itertools
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pathex.errors import PathexWarning
from pathex.scores._problem import Problem, mib

__all__ = ["Watch", "calibration_chunk", "cost_of_image", "doubt_batches", "few"]

# What an image takes in any pass, at most, in the results of all functions: so few images are not measured.
_AT_MOST, _AT_MOST_WITH_ATTENTION = 4, 32
_FORWARD_AT_MOST = 16.0  # in the largest result
_LATER = 12  # bytes a weight of products, their sums and gradients, which come after calibration
_HIDDEN = 1.1  # what PyTorch's functions take for themselves is not seen from outside


class Watch(TorchDispatchMode):
    """Follows the memory of the tensors that are made inside.

    Attributes:
        sizes: Bytes of each new piece of memory, in the order in which they were made.
        entries: Number of entries that fit into each.
        changes: What happened in turn: the number of a piece from 1 when it is made, negative when it is free again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.entries: list[int] = []
        self.changes: list[int] = []
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            memory = tensor.untyped_storage()
            if memory._cdata not in given and memory._cdata not in self._alive:
                self.sizes.append(memory.nbytes())
                self.entries.append(memory.nbytes() // tensor.element_size())
                self.changes.append(len(self.sizes))
                self._alive[memory._cdata] = len(self.sizes)
                weakref.finalize(memory, self._free, memory._cdata)
        return result

    def _free(self, key: int) -> None:
        if key in self._alive:
            self.changes.append(-self._alive.pop(key))

    def peak(self, sizes: list[int] | None = None) -> int:
        """Most bytes at a time.

        Args:
            sizes: What each piece counts; None: its bytes.

        Returns:
            Bytes.
        """
        sizes = self.sizes if sizes is None else sizes
        return max(itertools.accumulate((sizes[c - 1] if c > 0 else -sizes[-c - 1] for c in self.changes), initial=0))


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.layout == torch.strided]


def few(tensor: Tensor) -> Tensor:
    """Two entries, of one tensor twice the same.

    Args:
        tensor: ``(N, ...)``.

    Returns:
        ``(2, ...)``.
    """
    return tensor[:2] if len(tensor) > 1 else torch.cat([tensor, tensor])


def cost_of_image(
    problem: Problem, key: Hashable, make: Callable[[], Callable[[int], object]], output: str | int | None
) -> float:
    """Bytes of memory that one more image costs in a pass; measured once a prune, if the budget may be too small.

    Args:
        problem: Model, images and budget; a `doubt` says if one image alone needs more.
        key: Tells passes apart that cost different amounts.
        make: Gives the pass: a function of the number of images, 1 or 2.
        output: Which of several outputs counts.

    Returns:
        Bytes; where all images fit in any case, no fewer.
    """
    found, room, costs = problem.survey(output), problem.room(), problem.memo.setdefault("costs", {})
    attends = any("softmax" in name or "attention" in name for name in found.beyond)
    entries = found.footprint.total * (_AT_MOST_WITH_ATTENTION if attends else _AT_MOST)
    if 8 * entries * len(problem.images) <= room:
        return float(8 * entries)
    if key not in costs:
        costs[key] = _HIDDEN * _growth(make(), problem.prunable.values(), room)
    if costs[key] > room:
        problem.doubt(
            f"one image takes {mib(costs[key])} of memory, more than the budget of {mib(problem.budget())} leaves "
            f"({mib(room)}): images are taken one at a time"
        )
    return float(costs[key])


def _growth(run: Callable[[int], object], weights: Iterable[Tensor], room: int) -> int:
    """What the peak of a pass grows by with an image."""
    run(1)  # whatever is kept from pass to pass is there now
    first = Watch()
    with first:
        run(1)
    known = {weight.numel() for weight in weights}
    pieces = zip(first.sizes, first.entries, strict=True)
    alone = first.peak([0 if entries in known else size for size, entries in pieces])
    if 2 * alone > room:
        return alone
    second = Watch()
    with second:
        run(2)
    if len(first.sizes) != len(second.sizes):  # the network takes another route with two images
        return max(alone, second.peak() - first.peak())
    return second.peak([two - one for one, two in zip(first.sizes, second.sizes, strict=True)])


def calibration_chunk(
    problem: Problem, images: Tensor, run: Callable[[Tensor], object], output: str | int | None
) -> int | None:
    """How many images a forward pass without gradient may take at a time.

    Args:
        problem: Model and budget.
        images: All of them, ``(N, ...)``.
        run: The pass.
        output: Which of several outputs counts.

    Returns:
        Their number; None: all.
    """
    cost, room = problem.survey(output).footprint.largest * images.itemsize * _FORWARD_AT_MOST, problem.room(_LATER)
    if cost * len(images) > room:
        costs, key = problem.memo.setdefault("costs", {}), ("calibration", images.dtype)
        if key not in costs:
            first = few(images)
            costs[key] = _HIDDEN * _growth(lambda n: run(first[:n]), problem.prunable.values(), room)
        cost = costs[key]
    fits = int(room // max(1.0, cost))
    if len(images) <= fits:
        return None
    _say_slow(problem, cost * len(images), room, len(images))
    return max(1, fits)


def _say_slow(problem: Problem, size: float, room: int, count: int) -> None:
    """Say once per prune that calibration has to start again for every BatchNorm."""
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in problem.model.modules())
    if norms < 2 or problem.memo.setdefault("calibration in parts", False):
        return
    problem.memo["calibration in parts"] = True
    warnings.warn(
        f"calibrating on {count} images at once takes about {mib(size)} of memory, more than the budget of "
        f"{mib(problem.budget())} leaves ({mib(room)}): in parts it takes the time of {(norms + 1) / 2:g} "
        "passes; allow more memory or fewer calibration_images",
        PathexWarning,
        stacklevel=2,
    )


def doubt_batches(problem: Problem, output: str | int | None) -> None:
    """Say that batches as delivered, which cannot be cut, may need more than the memory that was asked for.

    Args:
        problem: Model, batches and budget.
        output: Which of several outputs counts.
    """
    if problem.memory is None or not problem.processes.alone:
        return
    largest = max(len(x) for x, _ in problem.batches)
    cost = largest * problem.survey(output).footprint.total * problem.dtype.itemsize
    if cost > problem.memory:
        problem.doubt(
            f"a batch of {largest} images takes about {mib(cost)} of memory, more than the budget of "
            f"{mib(problem.memory)}, and is not cut, as BatchNorm uses its statistics: deliver smaller batches"
        )

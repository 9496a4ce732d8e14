"""BatchNorm calibration: the statistics that the masked network itself produces on the calibration images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pathex.paths._moments import Moments, finish, merge, moments_of
from pathex.paths._network import run, tensors_of, untouched
from pathex.paths._readings import Record
from pathex.paths.passes import _dtype

__all__ = ["calibrate"]


class _Reached(Exception):
    def __init__(self, moments: tuple[Tensor, Tensor, int], stored: Moments | None) -> None:
        super().__init__()
        self.moments = moments
        self.stored = stored


@dataclass(eq=False)
class _UpToNextNorm(Record):
    """A forward pass that ends at the first BatchNorm whose moments are not known yet."""

    given: list[Moments] = field(default_factory=list)
    keep: bool = False

    def measure(self, x: Tensor, stored: Moments | None) -> Moments:
        raise _Reached(moments_of(x), stored)


def calibrate(
    model: nn.Module,
    x: Tensor,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
    output: str | int | None = None,
) -> Sequence[Moments]:
    """Mean and biased variance of what reaches each BatchNorm, over all images together, layer after layer.

    Every layer sees the outputs of the layers before it normalised by their own calibrated moments. The network's
    stored statistics are neither used nor changed.

    Args:
        model: The network; left as it was.
        x: Calibration images ``(N, ...)``.
        tensors: Tensors that stand in for parameters, by name.
        chunk: Images in memory at a time. None runs one forward pass with all of them; a number bounds memory and
            costs one partial forward pass for each BatchNorm call, with the same result up to rounding.
        output: Which of several outputs counts.

    Returns:
        Moments by BatchNorm call.
    """
    with untouched(model), torch.no_grad():
        own = tensors_of(model, tensors, _dtype(model, tensors))
        x = x.to(_dtype(model, tensors))
        if chunk is None or chunk >= len(x):
            whole = Record(model, own, None, keep=False)
            with whole:
                run(model, own, whole.carry(x.clone()), output)
            return whole.moments
        known: list[Moments] = []
        while True:
            parts = [_next_norm(model, own, part, known, output) for part in x.split(chunk)]
            reached = [part for part in parts if part is not None]
            if not reached:
                return known
            total = reached[0].moments
            for part in reached[1:]:
                total = merge(total, part.moments)
            known.append(finish(total, reached[0].stored))


def _next_norm(
    model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor, known: list[Moments], output: str | int | None
) -> _Reached | None:
    reading = _UpToNextNorm(model, tensors, known)
    try:
        with reading:
            run(model, tensors, reading.carry(x.clone()), output)
    except _Reached as reached:
        return reached
    return None

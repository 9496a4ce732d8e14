"""How many input-output paths of a masked network go through each weight, and which weights share a unit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathex.paths._made import Tensors
from pathex.paths._network import tensors_of
from pathex.paths._readings import PerSample
from pathex.paths._tracing import Call, Traced, by_units, from_units, traverse

__all__ = ["PathCounts", "Use", "count_paths"]


@dataclass(frozen=True)
class Use:
    """One call of a convolution or linear layer that uses a weight.

    Attributes:
        index: For each entry of the layer's weight its flat index in the parameter.
        groups: Number of groups of the convolution.
        transposed: Whether it is a transposed convolution.
    """

    index: Tensor
    groups: int
    transposed: bool

    def by_units(self, values: Tensor) -> Tensor:
        """Values of the parameter's entries in the order (groups, outputs of a group, inputs of a group, kernel).

        Args:
            values: In the shape of the parameter.

        Returns:
            The values.
        """
        return by_units(values.flatten()[self.index], self.groups, self.transposed)

    def add_to(self, total: Tensor, values: Tensor) -> None:
        """Add values in the order of `by_units` to a total in the shape of the parameter.

        Args:
            total: The total, changed in place.
            values: (groups, outputs of a group, inputs of a group, kernel).
        """
        back = from_units(values, self.index.shape, self.transposed)
        total.view(-1).index_add_(0, self.index.flatten(), back.flatten().to(total))


@dataclass(frozen=True)
class PathCounts:
    """Paths through the weights of a masked network.

    Attributes:
        through: For each weight the number of paths through it, once for each time that a path uses it. Where the
            number of all paths leaves float64, every layer is divided by its mean number of weights to an output unit.
        total: Number of all paths, divided alike.
        uses: For each weight the calls that use it.
    """

    through: dict[str, Tensor]
    total: float
    uses: dict[str, list[Use]]


def count_paths(
    model: nn.Module,
    x: Tensor,
    mask: Mapping[str, Tensor],
    *,
    per_sample: PerSample = "refuse",
    output: str | int | None = None,
) -> PathCounts:
    """Count the input-output paths through each weight of a masked network.

    Positions count: a channel at another position is another start, end or stop of a path. All gates are open, max
    pools pass their whole window, coefficients between layers count 1 (averages their shares), and every parameter
    that is not masked counts as present.

    Args:
        model: The network; left as it was.
        x: An image ``(1, ...)``; only its shape counts.
        mask: Name to bool tensor, True = kept.
        per_sample: ``refuse``, or ``one``: coefficients that belong to a sample count 1.
        output: Which of several outputs counts.

    Returns:
        Counts in float64, on the model's device.

    Raises:
        UnsupportedOperation: If the network cannot be read as open paths.
    """
    counts = _counted(model, x, mask, per_sample, output, False)
    if math.isfinite(counts.total):
        return counts
    return _counted(model, x, mask, per_sample, output, True)


def _counted(
    model: nn.Module,
    x: Tensor,
    mask: Mapping[str, Tensor],
    per_sample: PerSample,
    output: str | int | None,
    scaled: bool,
) -> PathCounts:
    device = next(iter(model.parameters())).device
    entries = {name: kept.to(device, torch.float64, copy=True).requires_grad_() for name, kept in mask.items()}
    # Whatever is not masked counts as present, parameters that start at zero too.
    others = {n: p for n, p in model.named_parameters() if n not in mask and p.is_floating_point()}
    ones = {name: torch.ones_like(p, dtype=torch.float64) for name, p in others.items()}
    reading = _Count(model, tensors_of(model, ones, torch.float64), entries, per_sample, scaled)
    _, result = traverse(reading, x, output)
    total = result.sum()
    grads = torch.autograd.grad(total, list(entries.values()), allow_unused=True) if total.requires_grad else ()
    through = {name: torch.zeros_like(entry, requires_grad=False) for name, entry in entries.items()}
    for (name, entry), grad in zip(entries.items(), grads, strict=False):
        if grad is not None:
            through[name] = entry.detach() * grad
    return PathCounts(through, float(total.detach()), reading.uses)


class _Count(Traced):
    def __init__(
        self,
        model: nn.Module,
        tensors: Tensors,
        entries: Mapping[str, Tensor],
        per_sample: PerSample,
        scaled: bool,
    ) -> None:
        super().__init__(model, tensors, entries, "sum", per_sample)
        self.entries, self.scaled = entries, scaled
        self.uses: dict[str, list[Use]] = {name: [] for name in entries}

    def coefficient(self, value: Any) -> Any:
        return (value != 0).to(value.dtype) if isinstance(value, Tensor) else float(value != 0)

    def layer(self, call: Call) -> Tensor:
        if call.name is None or call.index is None:
            weight = self.coefficient(call.weight.detach())
        else:
            weight = self.entries[call.name].flatten()[call.index]
            self.uses[call.name].append(Use(call.index, call.groups, call.transposed))
        if self.scaled:
            outputs = call.weight.shape[1] * call.groups if call.transposed else call.weight.shape[0]
            weight = weight * (outputs / weight.detach().sum().clamp_min(1.0))
        return call.apply(weight)

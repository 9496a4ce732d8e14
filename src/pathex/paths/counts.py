"""How many input-output paths of a masked network go through each weight, and which weights share a unit."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathex.graph import Graph, Images, Node, Output, Tensors, ones, trace, untouched
from pathex.paths.linear import Linear, PerSample, inputs_of, run_linear
from pathex.paths.lowering import lowered
from pathex.paths.units import by_units, is_layer, layout_of
from pathex.paths.weights import Call, Weights


@dataclass(frozen=True)
class Use:
    """One call of a layer that uses a weight: for each of its entries the flat index in the parameter; groups."""

    index: Tensor
    groups: int
    transposed: bool

    def by_units(self, values: Tensor) -> Tensor:
        """Values of the parameter's entries in the order (groups, outputs of a group, inputs of a group, kernel)."""
        return by_units(values.flatten()[self.index.to(values.device)], self.groups, self.transposed)

    def add_to(self, total: Tensor, values: Tensor) -> None:
        """Add values in the order of `by_units` to a total in the shape of the parameter, which is changed in place."""
        back = values.transpose(1, 2) if self.transposed else values
        places = self.index.to(total.device).flatten()
        total += torch.zeros(total.numel()).to(total).index_add_(0, places, back.flatten().to(total)).view(total.shape)


@dataclass(frozen=True)
class PathCounts:
    """Paths through the weights of a masked network, and the calls that use each.

    ``through`` counts a path once for each time that it uses a weight (or would use one that is not kept, if such are
    ``opened``), ``total`` all paths. Where the number of these leaves float64, every layer is divided by its mean
    number of weights to an output unit.
    """

    through: dict[str, Tensor]
    total: float
    uses: dict[str, list[Use]]


def count_paths(
    model: nn.Module,
    x: Any,
    mask: Tensors,
    *,
    per_sample: PerSample = "refuse",
    output: Output = None,
    opened: bool = False,
) -> PathCounts:
    """Count the input-output paths through each weight of a masked network.

    Positions count: a channel at another position is another start, end or stop of a path. All gates are open, max
    pools pass their whole window, coefficients between layers count 1 (averages their shares), and every parameter
    that is not masked counts as present. Of the images only the shape counts.

    Returns:
        Counts in float64, on the model's device.
    """
    x = inputs_of(x)[:1]
    graph = lowered(trace(model, x, output=output))
    counts = _counted(graph, model, x, mask, per_sample, opened, scaled=False)
    return counts if math.isfinite(counts.total) else _counted(graph, model, x, mask, per_sample, opened, scaled=True)


def _counted(
    graph: Graph, model: nn.Module, x: Images, mask: Tensors, per_sample: PerSample, opened: bool, *, scaled: bool
) -> PathCounts:
    device = next(iter(model.parameters())).device
    # Whatever is not masked counts as present, parameters that start at zero too.
    one = torch.ones((), dtype=torch.float64, device=device)
    present = {n: one.expand(p.shape) for n, p in model.named_parameters() if p.is_floating_point()}
    weights = Weights(model, torch.float64, mask=None if opened else mask, replaced=present, scored=list(mask))
    with untouched(model), torch.enable_grad():
        reading = _Count(graph, weights, per_sample, scaled, mask if opened else None)
        total = run_linear(reading, ones(x, torch.float64, device)).sum()
        through = reading.scores(total) if total.requires_grad else weights.take()
    return PathCounts(through, float(total.detach()), reading.uses)


class _Opened(Call):
    """A call with a masked weight, whose gradient is that of the whole one's entries were they kept."""

    def __init__(self, call: Call, kept: Tensor) -> None:
        self.call, self.kept = call, kept

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.call.forward(x, weight * self.kept)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wants_input: bool) -> tuple[Tensor | None, Tensor]:
        return self.call.backward(grad, x, weight * self.kept, wants_input)


class _Count(Linear):
    def __init__(
        self, graph: Graph, weights: Weights, per_sample: PerSample, scaled: bool, masks: Tensors | None
    ) -> None:
        super().__init__(graph, weights, None, coefficients="connected", per_sample=per_sample)
        self.scaled, self.masks = scaled, masks
        self.uses: dict[str, list[Use]] = {name: [] for name in weights.scores}

    def weighed(self, node: Node, x: Tensor, argument: Any, call: Call, scale: Tensor | None = None) -> Tensor:
        origin = self.origins.of_weight(argument)
        groups, transposed = layout_of(node)
        if origin is not None:
            if not is_layer(node) or len(origin.names) > 1 or (places := origin.index) is None or (places < 0).any():
                why = f"it uses {origin.names[0]!r} as no convolution or linear layer does"
                raise self.unsupported(node, why)
            start = self.origins.starts[origin.names[0]]
            self.uses[origin.names[0]].append(Use(places - start, groups, transposed))
            if self.masks is not None:
                call = _Opened(call, self.masks[origin.names[0]].flatten()[(places - start).to(x.device)].to(x))
        if self.scaled:
            weight = self.effective(argument)
            weight = weight * call.kept if isinstance(call, _Opened) else weight
            outputs = weight.shape[1] * groups if transposed else weight.shape[0]
            scale = (outputs / weight.sum().clamp_min(1.0)).expand(weight.shape[0])
        return super().weighed(node, x, argument, call, scale)

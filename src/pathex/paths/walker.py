"""Random walks from inputs to outputs and back, each step biased by the magnitude of the weights.

Walks that are at the same unit (a feature, or a channel at any position) are alike, so that they need not be told
apart: what is kept is how many walks are at each unit. A forward pass moves walks from the inputs on, and its backward
pass moves others from the outputs back.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pathex.graph import Images, Node, Output, Tensors, each, ones, tensors_in, trace, untouched
from pathex.paths.linear import Linear, PerSample, run_linear
from pathex.paths.lowering import lowered
from pathex.paths.units import by_units, is_layer, layout_of
from pathex.paths.weights import Call, Weights


class Walker:
    """Random walks through a network, for an image shaped as ``x``.

    A walk takes one weight of each layer, with a probability in proportion to its magnitude among all weights of the
    unit that the walk is at: forward among all output units and kernel positions, back among all input units and kernel
    positions. Everything between layers passes walks on; fixed factors and averages weigh branches against each other.
    Where a network forks, walks take every branch; where branches meet, or a channel becomes several features, those
    who go on are drawn from what arrives, so that every layer is passed by equally many.

    The use of ``weights`` is told, of which those in ``keep`` may be used (None: all); others stand in for other
    parameters. Draws come from ``source``, a generator on the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Images,
        weights: Tensors,
        source: torch.Generator,
        *,
        keep: Tensors | None = None,
        other: Tensors | None = None,
        per_sample: PerSample = "refuse",
        output: Output = None,
    ) -> None:
        self.model, self.x, self.per_sample, self.source, self.keep = model, x, per_sample, source, keep
        self.graph = lowered(trace(model, x[:1], output=output))
        replaced = {**(other or {}), **weights}
        self.tensors = Weights(model, torch.float64, replaced=replaced, scored=list(weights))
        self.layers: list[_Layer] = []

    def walk(self, walks: int) -> dict[str, Tensor]:
        """Half of the walks from the inputs, each unit in turn, half from the outputs: flat indices of uses by name."""
        # Layers that do not lead to the output are not used.
        reading = _Walk(self, (walks - walks // 2, walks // 2))
        start = each(ones(self.x[:1], torch.float64), Tensor.requires_grad_)
        starts = [tensor for tensor in tensors_in(start) if tensor.requires_grad]
        with untouched(self.model), torch.enable_grad():
            result = run_linear(reading, start)
            torch.autograd.grad(result.sum(), starts, allow_unused=True)
        none = torch.zeros(0, dtype=torch.long)
        return {name: torch.cat([none, *used]) for name, used in reading.used.items()}


class _Walk(Linear):
    def __init__(self, walker: Walker, walks: tuple[int, int]) -> None:
        how: Any = {"pools": "max", "per_sample": walker.per_sample}
        super().__init__(walker.graph, walker.tensors, None, coefficients="absolute", **how)
        self.walker, self.walks, self.source = walker, walks, walker.source
        self.used: dict[str, list[Tensor]] = {name: [] for name in walker.tensors.scores}
        self.number = 0

    def scale(self, node: Node) -> None:
        """BatchNorm passes walks on."""

    def affine(self, weight: Any) -> Tensor | None:
        return None if weight is None else (self(weight) != 0).to(self.dtype)

    def weighed(self, node: Node, x: Tensor, argument: Any, call: Call, scale: Tensor | None = None) -> Tensor:
        layers = self.walker.layers
        if not x.numel():  # a layer without weights, where no walk goes
            return super().weighed(node, x, argument, call, scale)
        if self.number == len(layers):
            layers.append(self._layer(node, x, argument, call))
        self.number += 1
        result = _Pass.apply(x, layers[self.number - 1], self)
        return result if scale is None else result * scale.view(-1, *[1] * (result.dim() - 2))

    def _layer(self, node: Node, x: Tensor, argument: Any, call: Call) -> "_Layer":
        origin, (groups, transposed) = self.origins.origin(argument), layout_of(node)
        if not is_layer(node):
            used = argument if origin is None else repr(origin.names[0])
            raise self.unsupported(node, f"it uses {used} as no convolution or linear layer does")
        origin = self.origins.of_weight(argument)
        if origin is not None and len(origin.names) > 1:
            raise self.unsupported(node, "its weight is made of several parameters")
        weight = self(argument)
        magnitudes, entries, name = weight.detach().abs().cpu(), None, None
        if origin is not None and origin.index is not None:
            name = origin.names[0]
            index = origin.index - self.origins.starts[name]
            entries = by_units(index, groups, transposed)
            if self.walker.keep is not None:
                magnitudes = magnitudes * self.walker.keep[name].cpu().flatten()[index]
        shape = call.forward(torch.empty_like(x, device="meta"), weight.to("meta")).shape
        return _Layer(by_units(magnitudes, groups, transposed), entries, name, 1 - weight.dim(), shape)


@dataclass(frozen=True, eq=False)
class _Layer:
    """One call of a layer, as walks see it.

    Magnitudes, and the flat indices in the parameter if its use is told, are in the order (groups, outputs of a group,
    inputs of a group, kernel); ``axis`` is the dimension of the units, ``shape`` that of the output.
    """

    magnitudes: Tensor
    entries: Tensor | None
    name: str | None
    axis: int
    shape: torch.Size

    @cached_property
    def forward(self) -> "_Table":
        """Choices of a walk at each input unit."""
        return _Table.of(self.magnitudes.transpose(1, 2))

    @cached_property
    def back(self) -> "_Table":
        """Choices of a walk at each output unit."""
        return _Table.of(self.magnitudes)

    def spread(self, units: Tensor, shape: torch.Size) -> Tensor:
        """A value of each unit at all its positions."""
        return units.view(-1, *[1] * (-1 - self.axis)).expand(shape).clone()

    def gathered(self, values: Tensor) -> Tensor:
        """The values of each unit over all positions: (positions, units), on the CPU."""
        return values.movedim(self.axis, -1).flatten(0, -2).cpu()


@dataclass(frozen=True, eq=False)
class _Table:
    """For each unit of one side of a layer the weights that lead away from it.

    ``form`` is (groups, units of a group on this side, units of a group on the other side, kernel), ``ends`` the
    running sum of the magnitudes in this order, which is ``below`` before each unit and ``above`` at its end.
    """

    form: torch.Size
    ends: Tensor
    above: Tensor
    below: Tensor

    @classmethod
    def of(cls, rates: Tensor) -> "_Table":
        ends = rates.flatten().cumsum(0)
        above = ends.view(rates.shape[0] * rates.shape[1], -1)[:, -1].clone()
        return cls(rates.shape, ends, above, torch.cat([above.new_zeros(1), above[:-1]]))

    def take(self, arriving: Tensor, walks: int, source: torch.Generator) -> tuple[Tensor, ...]:
        """One weight for each walk."""
        counts = _drawn_from(torch.where(self.above > self.below, arriving, 0.0), walks, source)
        unit = torch.repeat_interleave(torch.arange(len(counts)), counts)
        below, above = self.below[unit], self.above[unit]
        point = below + torch.rand(len(unit), dtype=torch.float64, generator=source) * (above - below)
        point = torch.minimum(point, torch.nextafter(above, below))  # rounding must not reach the next unit
        return torch.unravel_index(torch.searchsorted(self.ends, point, right=True), self.form)

    def arrivals(self, group: Tensor, other: Tensor) -> Tensor:
        """How many walks each unit on the other side receives."""
        units = self.form[2]
        return torch.bincount(group * units + other, minlength=self.form[0] * units).double()


def _drawn_from(shares: Tensor, walks: int, source: torch.Generator) -> Tensor:
    """``walks`` walks over units in proportion to their shares; systematic, so that whole numbers stay as they are."""
    ends = shares.cumsum(0)
    if walks == 0 or not ends[-1] > 0:
        return torch.zeros(shares.shape, dtype=torch.long)
    marks = ends / ends[-1] * walks + torch.rand((), dtype=torch.float64, generator=source)
    return marks.floor().diff(prepend=torch.zeros(1, dtype=torch.float64)).long()


class _Pass(torch.autograd.Function):
    """Walks through a layer. Its input and output tell how many arrive.

    Forward, the value at any position of a channel is the number of walks in it: pools and means keep that. Back, the
    sum over all positions is: gradients of pools and means keep that.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Layer, walk: _Walk) -> Tensor:
        arriving = layer.gathered(x).mean(0)
        group, inputs, outputs, kernel = layer.forward.take(arriving, walk.walks[0], walk.source)
        ctx.form, ctx.layer, ctx.walk, ctx.taken = x.shape, layer, walk, (group, outputs, inputs, kernel)
        return layer.spread(layer.forward.arrivals(group, outputs).to(x), layer.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        layer, walk = ctx.layer, ctx.walk
        arriving = layer.gathered(grads[0]).sum(0)
        taken = layer.back.take(arriving, walk.walks[1], walk.source)
        if layer.name is not None and layer.entries is not None:
            # Only now is it known that walks from the inputs lead to the output.
            walk.used[layer.name] += [layer.entries[ctx.taken], layer.entries[taken]]
        units = layer.back.arrivals(taken[0], taken[2]).to(grads[0])
        return layer.spread(units * (len(units) / ctx.form.numel()), ctx.form), None, None

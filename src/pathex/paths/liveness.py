"""Which kept weights lie on a path from input to output, and what died with those that do not."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pathex.graph import WEIGHTED, Graph, Images, Node, Output, Tensors, compute_dtype, ones, trace, untouched
from pathex.paths.linear import Linear, inputs_of, origins_of, run_linear
from pathex.paths.lowering import lowered
from pathex.paths.units import by_units, is_layer, layout_of
from pathex.paths.weights import Weights


@dataclass(frozen=True)
class Connectivity:
    """Kept weights on input-output paths.

    Attributes:
        effective: For each masked weight a bool tensor: kept and on a path.
        disconnected: Number of kept weights that lie on no path.
        dead_layers: Names of the weights of which nothing lies on a path.
        dead_channels: For each weight the indices of its output channels of which no weight lies on a path.
        channels: For each weight the number of its output channels.
        dead_outputs: Indices of the outputs (channels of the output, such as classes) that no path reaches.
    """

    effective: dict[str, Tensor]
    disconnected: int
    dead_layers: list[str]
    dead_channels: dict[str, list[int]]
    channels: dict[str, int]
    dead_outputs: list[int]


class _Indicator(torch.autograd.Function):
    """1 where positive, forwards and backwards, so that reachability neither overflows nor underflows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return (grads[0] > 0).to(grads[0].dtype)


class _Used(Weights):
    """Weights whose scores are whether anything positive was added to them."""

    def add(self, name: str, product: Tensor) -> None:
        used, known = product > 0, self.scores[name]
        self.scores[name] = used if known is None else known.logical_or_(used)


class _Liveness(Linear):
    """Open reading in which every value is 0 (no path from the input arrives) or 1.

    Without a ``role`` paths go through every factor of a product. With one they end at the next product, where they
    must enter as the factor of that number, and what leaves it must reach the output, as ``leaving`` says. With
    ``values_only`` they do not pass what only makes a coefficient (softmax, sigmoid).
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        *,
        role: int | None = None,
        leaving: dict[Node, Tensor] | None = None,
        values_only: bool = False,
    ) -> None:
        super().__init__(graph, weights, None, coefficients="connected", per_sample="one")
        self.role, self.leaving, self.values_only = role, {} if leaving is None else leaving, values_only
        self.ends: list[Tensor] = []

    def visit(self, node: Node) -> Any:
        result = super().visit(node)
        return _Indicator.apply(result) if isinstance(result, Tensor) and node in self.graph.carried else result

    def effective(self, argument: Any) -> Tensor:
        mask = self.weights.mask.get(argument.target) if argument.op == "parameter" else None
        return super().effective(argument) if mask is None else mask.to(self.device, self.dtype)

    def passes(self, x: Tensor, node: Node) -> Tensor:
        passed = super().passes(x, node)
        # Each share of a softmax depends on all that reaches it.
        return passed.sum(node["dim"], keepdim=True).expand_as(passed) if "softmax" in node.op else passed

    def joined(self, node: Node, terms: Sequence[Tensor]) -> Tensor:
        result = super().joined(node, terms)
        if self.role is None:
            if result.requires_grad:
                result.register_hook(lambda grad: self.leaving.__setitem__(node, (grad > 0).to(grad.dtype)))
            return result
        if node in self.leaving and self.role < len(terms):
            self.ends.append((terms[self.role] * self.leaving[node]).sum())
        return result.detach()


def connectivity(model: nn.Module, mask: Tensors, x: Any, *, output: Output = None) -> Connectivity:
    """Find the kept weights that lie on no path from an input to an output.

    All gates are open, max pools pass their whole window, and every parameter that is not masked counts as present. A
    product is dead where one of its factors is; what a sigmoid or a softmax makes of a dead input is not zero, and so
    no dead factor.

    Args:
        model: The network; left as it was.
        mask: Name to bool tensor, True = kept.
        x: Any input ``(N, ...)``, or a tuple of arguments, or a dictionary of them by name; only its shape counts.
        output: Which of several outputs counts.

    Returns:
        Effective weights, and dead layers, channels and outputs.

    Raises:
        MaskMismatch: If the mask does not fit the model.
    """
    x = inputs_of(x)[:1]
    graph = trace(model, x, output=output)
    effective, _, reached = _effective(graph, model, mask, x)
    live = {name: _by_output_channel(graph, name, used).any(1) for name, used in effective.items()}
    dead_channels = {name: (~channels).nonzero().flatten().tolist() for name, channels in live.items()}
    kept = sum(int(entry.count_nonzero()) for entry in mask.values())
    dead_layers = [name for name, used in effective.items() if not used.any()]
    disconnected = kept - sum(int(used.count_nonzero()) for used in effective.values())
    channels = {name: len(each) for name, each in live.items()}
    outputs = reached.reshape(1, -1) if reached.dim() < 2 else reached.transpose(0, 1).flatten(1)
    dead_outputs = (~outputs.any(1)).nonzero().flatten().tolist()
    return Connectivity(effective, disconnected, dead_layers, dead_channels, channels, dead_outputs)


class OnPaths:
    """From a mask to those of its entries that lie on a path from an input to an output, for inputs shaped as ``x``."""

    def __init__(self, model: nn.Module, x: Images, *, output: Output = None) -> None:
        self.model, self.x, self.output = model, x[:1], output

    @cached_property
    def graph(self) -> Graph:
        """The traced network."""
        return trace(self.model, self.x, output=self.output)

    def __call__(self, mask: Tensors, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """For each masked weight, or those that are named, a bool tensor on the CPU."""
        return _effective(self.graph, self.model, mask, self.x, names)[0]


def roles(model: nn.Module, mask: Tensors, x: Any, *, output: Output = None) -> dict[str, list[Tensor]]:
    """Tell apart the parts of a weight that play different roles at products: value, gate, query, key.

    Networks fuse such weights into one (the ``qkv`` of an attention, both halves of a GLU). Entries are told apart by
    whether paths of values go through them, and as which factor they enter the next product.

    Returns:
        For each masked weight disjoint bool tensors, together the kept entries on a path; most weights have one part.
    """
    x = inputs_of(x)[:1]
    graph = trace(model, x, output=output)
    whole, leaving, _ = _effective(graph, model, mask, x)
    passing = []
    if leaving:
        passing.append(_effective(graph, model, mask, x, values_only=True)[0])
        passing += [_effective(graph, model, mask, x, role=role, leaving=leaving)[0] for role in (0, 1)]
    found: dict[str, list[Tensor]] = {}
    for name, used in whole.items():
        parts = [used]
        for passed in reversed(passing):  # in the order of the numbers whose bits say what passes
            parts = [half for part in parts for half in (part & ~passed[name], part & passed[name])]
        found[name] = [part for part in parts if part.any()]
    return found


def has_empty_units(graph: Graph, mask: Tensors) -> bool:
    """Whether a unit of a layer has no kept weight to it, or from it: if not, a mask cuts nothing off."""
    layouts: dict[str, tuple[int, bool] | None] = graph.memo.setdefault("layouts", {})
    for name, kept in mask.items():
        if name not in layouts:
            layer = _layer_of(graph, name)
            layouts[name] = None if layer is None or len(graph.users[layer.args[1]]) > 1 else layout_of(layer)
        layout = layouts[name]
        if layout is None:
            if not kept.all():
                return True
            continue
        units = by_units(kept, *layout).any(3)
        if not units.any(1).all() or not units.any(2).all():
            return True
    return False


def without_narrow_units(graph: Graph, mask: Tensors, allowed: Tensors, least: int) -> dict[str, Tensor]:
    """What is allowed, but for units to which a mask keeps fewer than ``least`` weights; the widest of a layer stay."""
    # Units that are outputs of the network stay too.
    found = {}
    for name, kept in mask.items():
        layer, open_weights = _layer_of(graph, name), allowed[name].clone()
        if layer is not None and not _is_output(graph, layer):
            places = _by_output_channel(graph, name, torch.arange(kept.numel()).view(kept.shape)).to(kept.device)
            width = kept.flatten()[places].sum(1)
            narrow = width < min(least, int(width.max()))
            open_weights.view(-1)[places[narrow].flatten().to(open_weights.device)] = False
        found[name] = open_weights
    return found


def output_places(graph: Graph, weights: Tensors) -> dict[str, Tensor]:
    """Of the weights that outputs are made of directly, flat places ``(outputs, weights of each)``."""
    found = {}
    for name, weight in weights.items():
        layer = _layer_of(graph, name)
        if layer is not None and _is_output(graph, layer):
            found[name] = _by_output_channel(graph, name, torch.arange(weight.numel()).view(weight.shape))
    return found


def _is_output(graph: Graph, layer: Node) -> bool:
    """Whether the output is reached from a layer through no other one."""
    seen, open_nodes = {layer}, [layer]
    while open_nodes:
        node = open_nodes.pop()
        if node is graph.output:
            return True
        later = {user for user in graph.users[node] if not is_layer(user)} - seen
        seen |= later
        open_nodes += later
    return False


def off_path(model: nn.Module, names: Sequence[str], x: Images, *, output: Output = None) -> list[str]:
    """Parameters that the output is computed from on no path from the input: position biases, constant queries."""
    graph = trace(model, x, output=output)
    known: dict[tuple[str, ...], list[str]] = graph.memo.setdefault("off path", {})
    if tuple(names) not in known:
        one = torch.ones((), dtype=torch.bool)
        whole = {name: one.expand(model.get_parameter(name).shape) for name in names if name in graph.used}
        on = _effective(graph, model, whole, x if graph.fixed_batch else x[:1])[0] if whole else {}
        known[tuple(names)] = [name for name in whole if not on[name].any()]
    return list(known[tuple(names)])


def _weighing(graph: Graph, names: tuple[str, ...]) -> set[str]:
    """The parameters that are weights of what the input reaches, or are made into such weights entry by entry."""
    known: dict[tuple[str, ...], set[str]] = graph.memo.setdefault("weighing", {})
    if names in known:
        return known[names]
    origins = origins_of(graph, names)
    found = known[names] = set()
    for node in graph.path:
        if node in graph.carried and graph.role(node) not in ("sum", "structure"):
            for origin in filter(None, map(origins.origin, node.inputs)):
                # A query that is computed from constants is a coefficient; the weight of a layer is read or refused.
                if origin.places is not None or node.op in WEIGHTED:
                    found.update(origin.names)
    return found


def _effective(
    graph: Graph, model: nn.Module, mask: Tensors, x: Images, names: Collection[str] | None = None, **how: Any
) -> tuple[dict[str, Tensor], dict[Node, Tensor], Tensor]:
    """The kept entries on a path, on the CPU; which results of each product reach the output; what reaches it."""
    device = next(iter(model.parameters())).device
    dtype = compute_dtype(model)
    one = torch.ones((), dtype=dtype, device=device)
    present = {n: one.expand(p.shape) for n, p in model.named_parameters() if p.is_floating_point()}
    names = list(mask if names is None else names)
    weighing = _weighing(graph, tuple(mask))
    read = [name for name in mask if name in weighing]
    scored = [name for name in names if name in weighing]
    weights = _Used(model, dtype, mask=mask, replaced=present, scored=scored, prunable=read)
    with untouched(model), torch.enable_grad():
        reading = _Liveness(lowered(graph), weights, **how)
        result = run_linear(reading, ones(x, dtype, device))
        total = result.sum() if reading.role is None else sum(reading.ends)
        found = {name: torch.zeros_like(mask[name], device="cpu") for name in names}
        if isinstance(total, Tensor) and total.requires_grad:  # whatever lies on a path has a positive derivative
            found |= {name: (score > 0).cpu() for name, score in reading.scores(total).items()}
        return found, reading.leaving, result.detach()


def _layer_of(graph: Graph, name: str) -> Node | None:
    """The first layer whose weight a parameter is."""
    node = graph.parameters.get(name)
    users = () if node is None else graph.users[node]
    return next((user for user in users if is_layer(user) and user.args[1] is node), None)


def _by_output_channel(graph: Graph, name: str, weight: Tensor) -> Tensor:
    """``(output channels, weights of each)``."""
    layer = _layer_of(graph, name)
    if layer is None:
        return weight.unsqueeze(-1).flatten(1)
    return by_units(weight, *layout_of(layer)).flatten(2).flatten(0, 1)

"""Readings of late rounds: masked convolutions compute kept weights alone, by the kernels of sparse training."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pathex.errors import UnsupportedOperation
from pathex.graph import Graph, Node, cost
from pathex.paths import Call, Linear, Record, Recording, per_dimension
from pathex.scores.problem import Problem, once

if TYPE_CHECKING:
    from pathex.sparse import KeptConvolution

# Measured: from which round on a prune is worth loading the kernels, up to which share of the multiply-adds they are
# faster, from how many images a thread on, and how much sparser a mask may become before they are planned again.
_ROUND, _SHARE, _IMAGES, _PLANNED = 10, 0.35, 16, 0.9


class KeptLayers:
    """The kernels of the masked convolutions of a graph, for a mask and those within it."""

    def __init__(self, graph: Graph, mask: Mapping[str, Tensor]) -> None:
        from pathex.sparse import Team

        self.graph, self.mask, self.team = graph, dict(mask), Team(torch.get_num_threads())
        self._layers: dict[Node, KeptConvolution] = {}
        for node in graph.path:
            if _name(node) in mask:
                with contextlib.suppress(UnsupportedOperation):  # of images that are too large
                    self._layers[node] = self._layer(node)

    def _layer(self, node: Node) -> "KeptConvolution":
        from pathex.sparse import KeptConvolution

        numbers = (per_dimension(node[name], 2) for name in ("stride", "dilation", "padding"))
        stride, dilation, padding = ((each[0], each[1]) for each in numbers)
        kept, size = self.mask[_name(node)], node.args[0].shape[2:]
        return KeptConvolution(kept, stride, dilation, padding, int(node["groups"]), size, self.team)

    def fit(self, graph: Graph, mask: Mapping[str, Tensor], kept: Mapping[str, int]) -> bool:
        """Whether they may stand for those of a graph and a mask, which keeps so many entries of each weight."""
        planned = sum(len(layer.places) for layer in self._layers.values())
        few = sum(kept[_name(node)] for node in self._layers) < _PLANNED * planned
        if graph is not self.graph or few:
            return False
        return all(int((mask[name] & own).count_nonzero()) == kept[name] for name, own in self.mask.items())

    def get(self, node: Node) -> "KeptConvolution | None":
        """The kernels of a node, if it has some."""
        return self._layers.get(node)


def _name(node: Node) -> str:
    """The parameter that a convolution in two dimensions takes as its weight, if the kernels know its form."""
    if node.op != "conv2d" or len(node.shape or ()) != 4 or isinstance(node["padding"], str):
        return ""
    weight = node["weight"]
    return str(weight.target) if weight.op == "parameter" else ""


def kept_layers(problem: Problem, trace: Callable[[], Graph]) -> KeptLayers | None:
    """The kernels for a round on the graph of a trace, if they are there and faster; kept from round to round."""
    mask, images, least = problem.mask, problem.images, _IMAGES * torch.get_num_threads()
    plain = isinstance(images, Tensor) and problem.device.type == "cpu" and len(images) >= least
    if mask is None or not plain or problem.round < _ROUND or importlib.util.find_spec("numba") is None:
        return None
    kept = {name: int(each.count_nonzero()) for name, each in mask.items()}
    if sum(kept.values()) > _SHARE * sum(each.numel() for each in mask.values()):
        return None
    graph = trace()
    if _share(graph, mask, kept) > _SHARE:
        return None
    known: KeptLayers | None = problem.memo.get("kept layers")
    if known is None or not known.fit(graph, mask, kept):
        known = problem.memo["kept layers"] = KeptLayers(graph, mask)
    return known


def _share(graph: Graph, mask: Mapping[str, Tensor], kept: Mapping[str, int]) -> float:
    """The multiply-adds that a mask keeps of the convolutions that have kernels; infinite without any."""
    products: Mapping[str, int] = once(graph.memo, "products", lambda: cost(graph).products)
    names = {_name(node) for node in graph.path} & mask.keys()
    whole = float(sum(products[name] for name in names))
    left = sum(products[name] * kept[name] / max(1, mask[name].numel()) for name in names)
    return left / whole if whole else float("inf")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: its others would look out for work where those of the kernels do theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class KeptGate:
    """A gate by the bits of `Pending.marked`."""

    bits: Tensor


@dataclass(frozen=True)
class KeptRecording(Recording):
    """What the pass of a `KeptRecord` leaves."""

    layers: KeptLayers


class KeptRecord(Record):
    """Runs a lowered graph as `Record` does, differentiably where gradients are on."""

    def __init__(self, layers: KeptLayers, *args: Any) -> None:
        super().__init__(layers.graph, *args)
        self.layers = layers

    def run(self, *inputs: Tensor) -> Any:
        """The value of the output."""
        with one_thread():
            return _plain(super().run(*inputs))

    def recording(self, *inputs: Tensor) -> "KeptRecording":
        """What a forward pass leaves."""
        found = super().recording(*inputs)
        return KeptRecording(found.graph, found.output, found.tape, found.statistics, self.layers)

    def visit(self, node: Node) -> Any:
        """The value of a node."""
        layer = self.layers.get(node)
        if layer is not None:
            values = self(node["weight"]).flatten()[layer.places]
            moments = any(user.op == "batch_norm" for user in self.graph.users[node])
            return layer(self(node.args[0]), values, self(node["bias"]), moments)
        if node.op == "relu" and not isinstance(x := self(node.args[0]), Tensor):
            y, bits = x.marked(len(self.graph.users[node]))
            self.keep(node, KeptGate(bits))
            return y
        return super().visit(node)

    def moments_of(self, x: Any) -> tuple[Tensor, Tensor, int]:
        """Mean and sum of squared deviations of each channel, and how many values it has."""
        if isinstance(x, Tensor) or x.moments is None:
            return super().moments_of(_plain(x).detach())
        (mean, variance), count = (each.detach() for each in x.moments), x.shape.numel() // x.shape[1]
        return mean, variance * count, count


class KeptLinear(Linear):
    """Reads a network as `Linear` does, with the gates of a `KeptRecord`."""

    def __init__(self, layers: KeptLayers, *args: Any, **how: Any) -> None:
        super().__init__(layers.graph, *args, **how)
        self.layers = layers

    def run(self, *inputs: Tensor) -> Any:
        """The value of the output."""
        with one_thread():
            return _plain(super().run(*inputs))

    def visit(self, node: Node) -> Any:
        """What the rule of a node's operator makes of it."""
        gate = self.tape.get(node) if self.tape else None
        if isinstance(gate, KeptGate):
            from pathex.sparse import Pending

            return Pending.of(self.layers.team, self(node.args[0])).gated(gate.bits, len(self.graph.users[node]))
        return super().visit(node)

    def scores(self, total: Tensor) -> dict[str, Tensor]:
        """As of `Linear`."""
        with one_thread():
            return super().scores(total)

    def product(
        self, node: Node, x: Any, call: Call, made: Callable[[], Tensor], take: Callable[[Tensor], None] | None
    ) -> Any:
        """What arrives times a weight."""
        layer = self.layers.get(node)
        if layer is None:
            return super().product(node, _plain(x), call, made, take)
        weight = made()
        values = weight.flatten()[layer.places]
        if self.anchor is not None and take is not None:
            values = _Taken.apply(values, self.anchor, layer.places, weight.shape, take)
        return layer(x, values)


class _Taken(torch.autograd.Function):
    """Kept values, whose products with their gradients are taken in the dense shape."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, anchor: Tensor, places: Tensor, shape: torch.Size, take: Callable[[Tensor], None]
    ) -> Tensor:
        ctx.values, ctx.places, ctx.shape, ctx.take = values, places, shape, take
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        products = ctx.values.new_zeros(ctx.shape.numel())
        products[ctx.places] = grads[0] * ctx.values
        ctx.take(products.view(ctx.shape))
        return None, None, None, None, None


class KeptForward(KeptRecord):
    """Runs a graph differentiably, and refuses nothing."""

    def __init__(self, layers: KeptLayers, tensors: Mapping[str, Tensor], statistics: Any, dtype: torch.dtype) -> None:
        super().__init__(layers, _Given(tensors, dtype), statistics)

    def visit(self, node: Node) -> Any:
        """The value of a node."""
        if node.op == "relu":
            y: Any = F.relu(self(node.args[0]))
            y.readers = len(self.graph.users[node])
            return y
        own = self.layers.get(node) is not None or node.op == "batch_norm"
        return super().visit(node) if own else self.plain(node)


@dataclass(frozen=True)
class _Given:
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype

    def __call__(self, name: str) -> Tensor:
        return self.tensors[name]


def _plain(x: Any) -> Tensor:
    found: Tensor = x if isinstance(x, Tensor) else x.tensor
    return found

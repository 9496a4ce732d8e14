"""Which entries of which parameters the entries of a computed weight are made of.

Networks compute weights from parameters: standardised, divided by their norm, scaled, moved, put together. A path is
weighed with the effective weight w, and the score of the parameter's entry theta_j in its place is
``w_j^2 dR / d(w_j^2)``. A standardisation is not differentiated: its output hardly depends on the size of theta, so
that the scores of a filter would cancel. There w is read as ``theta (w / theta)`` with the ratio fixed, and as 0 where
theta is 0 (pruned).
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathex.errors import UnsupportedOperation
from pathex.graph import FORMED_LIKE, STRUCTURE, Graph, Node, words

_SUMS = words("sum nansum cumsum col2im")
_JOINS = words("cat concat concatenate stack hstack vstack dstack column_stack pad constant_pad_nd write copy")
_SAME = words("to _to_copy type_as dropout detach alias contiguous clone float double")
_FACTORS = words("mul multiply div divide true_divide neg negative")
# Functions whose result has for each entry of a weight one that belongs to it.
PLACED = _FACTORS | words(
    "add sub subtract rsub pow square sqrt rsqrt abs absolute sign sgn exp log tanh sigmoid relu clamp clip clamp_min "
    "clamp_max round floor ceil trunc where masked_fill nan_to_num addcmul addcdiv lerp maximum minimum leaky_relu "
    "hardtanh erf reciprocal threshold softmax softplus gelu silu elu batch_norm layer_norm group_norm instance_norm "
    "rms_norm _weight_norm dropout hardsigmoid fake_quantize_per_tensor_affine fake_quantize_per_channel_affine "
    "log_softmax softsign atan sin cos log1p expm1 log_sigmoid"
)


@dataclass(frozen=True)
class Origin:
    """Where the entries of a weight come from: which entries of the parameters that it is made of.

    ``places`` are flat indices in all of these laid end to end, -1 where there is none; a range where they are those of
    one parameter in their order, in this ``shape``; None where entries are mixed. ``linear`` says whether parameters
    were only moved and multiplied by fixed factors.
    """

    names: tuple[str, ...]
    places: Tensor | range | None
    shape: torch.Size | None = None
    linear: bool = True

    @property
    def index(self) -> Tensor | None:
        """`places` as a tensor."""
        if isinstance(self.places, range):
            return torch.arange(self.places.start, self.places.stop).view(self.shape or ())
        return self.places

    @cached_property
    def aligned(self) -> bool:
        """Whether the weight has the entries of one parameter, all of them in their order."""
        if isinstance(self.places, range):
            return True
        if self.places is None or len(self.names) > 1 or not self.places.numel():
            return False
        return bool((self.places.flatten().diff() == 1).all())


class Origins:
    """The origins of the weights of a graph, in the parameters that are named."""

    def __init__(self, graph: Graph, names: Collection[str]) -> None:
        self.starts: dict[str, int] = {}
        self.shapes: dict[str, torch.Size] = {}
        self._known: dict[Node, Origin | None] = {}
        self._dependent = graph.dependent
        end = 0
        for name in names:
            node = graph.parameters.get(name)
            if node is not None and node.shape is not None:
                self.shapes[name] = torch.Size(node.shape)
                self.starts[name], end = end, end + self.shapes[name].numel()

    def direct(self, node: Node) -> str | None:
        """The name of a parameter that counts, if a node is one."""
        return node.target if node.op == "parameter" and node.target in self.starts else None

    def origin(self, node: Any) -> Origin | None:
        """Where a constant comes from."""
        if not isinstance(node, Node) or node in self._dependent:
            return None
        if node not in self._known:
            self._known[node] = self._found(node)
        return self._known[node]

    def of_weight(self, node: Node) -> Origin | None:
        """`origin` of a weight, whose entries must not be mixed."""
        origin = self.origin(node)
        if origin is not None and origin.places is None:
            raise UnsupportedOperation(
                f"no rule to read a weight in {node.place} as paths: it is computed from prunable weights "
                f"({', '.join(origin.names)}) in a way that does not keep their entries in place; leave them dense "
                "with ignore="
            )
        return origin

    def split(self, origin: Origin, values: Tensor) -> dict[str, Tensor]:
        """Values of a weight's entries summed over the entries of the parameters that they come from."""
        if self._whole(origin):
            return {origin.names[0]: values.reshape(self.shapes[origin.names[0]])}
        places = origin.index
        assert places is not None
        index, flat = places.to(values.device).flatten(), values.flatten()
        result = {}
        for name in origin.names:
            start, size = self.starts[name], self.shapes[name].numel()
            inside = (index >= start) & (index < start + size)
            total = torch.zeros(size, dtype=values.dtype, device=values.device)
            result[name] = total.index_add_(0, index[inside] - start, flat[inside]).view(self.shapes[name])
        return result

    def gather(self, origin: Origin, tensors: Any) -> Tensor:
        """The parameters' entries in the places of a weight's entries, zero where there is none."""
        places = origin.index
        assert places is not None
        if self._whole(origin):
            return tensors(origin.names[0]).reshape(places.shape)
        parts = []
        for name in origin.names:
            tensor = tensors(name).flatten()
            index = places.to(tensor.device) - self.starts[name]
            inside = (index >= 0) & (index < tensor.numel())
            parts.append(tensor[index.clamp(0, tensor.numel() - 1)] * inside)
        return sum(parts[1:], start=parts[0])

    def _whole(self, origin: Origin) -> bool:
        if isinstance(origin.places, range):
            return True
        assert origin.places is not None
        return origin.places.numel() == self.shapes[origin.names[0]].numel() and origin.aligned

    def _found(self, node: Node) -> Origin | None:
        if (name := self.direct(node)) is not None:
            size, start = self.shapes[name], self.starts[name]
            return Origin((name,), range(start, start + size.numel()), size)
        sources = [(source, o) for source in node.inputs if (o := self.origin(source)) is not None]
        if not sources:
            return None
        names = tuple(dict.fromkeys(name for _, origin in sources for name in origin.names))
        linear = all(origin.linear for _, origin in sources)
        if node.op in STRUCTURE - _SUMS and isinstance(node.args[0], Node):
            moved = self.origin(node.args[0])  # another operand gives the form alone
            index = None if moved is None else moved.index
            if moved is None or index is None:
                return moved
            return Origin(moved.names, self._moved(node, index), linear=moved.linear)
        if node.op in _JOINS:
            return Origin(names, self._joined(node), linear=linear)
        placed = [o for s, o in sources if node.op in PLACED and s.shape == node.shape and o.places is not None]
        factor = (node.op in _FACTORS and len(sources) == 1 and node.args[0] is sources[0][0]) or (
            node.op in ("mul", "multiply") and len(sources) == 1
        )
        # Of a weight and what was moved of it, the one whose entries are in their places.
        placed = [origin for origin in placed if origin.aligned] or placed
        index = placed[0].index if placed else None
        known = index is not None and all(
            o.names == names and o.index is not None and torch.equal(index, o.index) for o in placed
        )
        return Origin(names, index if known else None, linear=linear and factor)

    def _moved(self, node: Node, index: Tensor) -> Tensor | None:
        if node.op in _SAME:
            return index
        if node.op in FORMED_LIKE:
            return index.expand(node.shape or ()) if node.op == "expand_as" else index.reshape(node.shape or ())
        args = [index, *node.args[1:]]
        if any(isinstance(argument, Node) for argument in args):
            return None
        return node.target(*args, **node.kwargs)

    def _joined(self, node: Node) -> Tensor | None:
        def placed(value: Any) -> Any:
            if isinstance(value, Node):
                origin = self.origin(value)
                return torch.full(value.shape or (), -1) if origin is None else origin.index
            return [placed(entry) for entry in value] if isinstance(value, (list, tuple)) else value

        if any(o is not None and o.places is None for o in map(self.origin, node.inputs)):
            return None
        if node.op in ("pad", "constant_pad_nd"):
            return torch.nn.functional.pad(placed(node.args[0]), list(node.args[1]), value=-1)
        return node.target(*placed(node.args), **node.kwargs)

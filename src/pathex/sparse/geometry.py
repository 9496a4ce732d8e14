"""How the planes of values lie: zeros around them, and one distance between rows for what kernels read side by side."""

from collections.abc import Callable

from pathex.graph import ACTIVATIONS, Node
from pathex.sparse.layers import Layer, Reading


class Geometry:
    """Pads and pitches of the values of a network.

    A kernel computes a run of pixels from runs of its inputs, so that rows of the output, of planes that it reads as
    they are, and of what it adds are equally far from each other.

    Args:
        reading: The network.
        is_sparse: Which layers are computed by kernels.
    """

    def __init__(self, reading: Reading, is_sparse: Callable[[Layer], bool]) -> None:
        self._parents: dict[Node, Node] = {}
        self._pads: dict[Node, tuple[int, ...]] = {}
        self._least: dict[Node, int] = {}
        for layer in reading.layers.values():
            if not layer.is_linear and is_sparse(layer):
                self._place(layer)
        for node in reversed(reading.nodes):
            if node.op in ACTIVATIONS and isinstance(node.args[0], Node):  # from planes to like ones
                source = reading.same(node.args[0])
                self._pads[source] = self._pads[node] = tuple(map(max, self.pads(source), self.pads(node)))
                self._join(source, node)

    def _place(self, layer: Layer) -> None:
        source, result, window = layer.source, layer.result, layer.window
        if window.stride == (1, 1):
            first, second = self.pads(source), window.pads
            pads = self._pads[source] = tuple(map(max, first, second))
            self._ask(source, _width(source) + max(pads[1], pads[3]))
            self._ask(result, _width(result))
            self._join(source, result)
        else:
            self._ask(result, _width(result) + window.reach(1))
        if layer.residual is not None:
            self._join(layer.residual, result)

    def pads(self, node: Node) -> tuple[int, ...]:
        """Zeros on top, on the left, below and on the right of the planes of a node."""
        return self._pads.get(node, (0, 0, 0, 0))

    def pitch(self, node: Node) -> int:
        """Pixels from one row of the planes of a node to the next."""
        return max(_width(node), self._least.get(self._root(node), 1))

    def _root(self, node: Node) -> Node:
        while node in self._parents:
            node = self._parents[node]
        return node

    def _ask(self, node: Node, pitch: int) -> None:
        root = self._root(node)
        self._least[root] = max(pitch, self._least.get(root, 1))

    def _join(self, a: Node, b: Node) -> None:
        a, b = self._root(a), self._root(b)
        if a is not b:
            self._parents[a] = b
            self._ask(b, max(self._least.get(a, 1), _width(a)))


def _width(node: Node) -> int:
    return node.shape[3] if node.shape is not None and len(node.shape) == 4 else 1

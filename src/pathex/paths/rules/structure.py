"""Operators that move numbers or add them up without weighing them: linear with coefficient 1."""

from typing import Any

from torch import Tensor

from pathex.graph import STRUCTURE, Node
from pathex.paths.linear import Linear, rule

_TAKES = {"gather": "index", "take_along_dim": "indices", "index_select": "index"}


@rule(*STRUCTURE)
def _move(reading: Linear, node: Node) -> Any:
    if node.op in _TAKES and reading.opened and _decided(reading, node[_TAKES[node.op]]):
        # Any may come to any place.
        x = reading(node.args[0])
        return x.sum(node["dim"], keepdim=True).expand(_shape(node, x))
    if node.op == "index" and reading.opened and any(_decided(reading, i) for i in node["indices"] if i is not None):
        raise reading.unsupported(node, "it takes entries by values that this reading does not have")
    return reading.plain(node)


def _decided(reading: Linear, argument: Any) -> bool:
    return argument in reading.graph.dependent and argument not in reading.graph.carried


def _shape(node: Node, x: Tensor) -> list[int]:
    """The shape of what is taken, for as many images as arrive: the example's where it differs from its source."""
    traced = zip(node.shape or (), node.args[0].shape, x.shape, strict=True)
    return [here if taken == source else taken for taken, source, here in traced]

"""Operators that move numbers or add them up without weighing them: linear with coefficient 1."""

from typing import Any

import torch

from pathex.graph import STRUCTURE, Node
from pathex.paths.linear import Linear, rule

_TAKES = {"gather": "index", "take_along_dim": "indices", "index_select": "index"}


@rule(*STRUCTURE)
def _move(reading: Linear, node: Node) -> Any:
    if node.op in _TAKES and reading.opened and _decided(reading, node[_TAKES[node.op]]):
        # Any may come to any place.
        x = reading(node.args[0])
        return x.sum(node["dim"], keepdim=True).expand(_shape(reading, node))
    if node.op == "index" and reading.opened and any(_decided(reading, i) for i in node["indices"] if i is not None):
        raise reading.unsupported(node, "it takes entries by values that this reading does not have")
    return reading.plain(node)


def _decided(reading: Linear, argument: Any) -> bool:
    return argument in reading.graph.dependent and argument not in reading.graph.carried


def _shape(reading: Linear, node: Node) -> torch.Size:
    """The shape of a node's value for as many images as arrive."""
    size = list(node.shape or ())
    if node.batched and size:
        size[0] = len(reading(node.args[0]))
    return torch.Size(size)

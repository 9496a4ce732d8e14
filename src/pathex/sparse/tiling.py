"""How a layer is cut: tiles of its outputs in registers, blocks of its input channels in the first cache."""

import itertools
import math
from typing import Any

import numpy as np

from pathex.sparse import kernels
from pathex.sparse.layers import Layer

_CACHE = 16384  # bytes of a tile's input: half of the first cache
_PAYS = 16  # kept weights of an output in a block, from which on a sum in parts is faster


def tiles(length: int) -> int:
    """How many tiles cover a run of floats."""
    return -(-length // (kernels.LANES * kernels.REGISTERS))


def blocks(layer: Layer, offsets: Any, length: int) -> list[Any]:
    """Which kept weights belong to each block of input channels, if blocks are worth sums in parts."""
    plan, channels = layer.plan, layer.weight.shape[1]
    if layer.groups > 1 or not plan.kept:
        return [np.ones(plan.kept, bool)]
    tile = -(-length // tiles(length))
    fullest = plan.channels == np.bincount(plan.channels).argmax()
    window = min(tile + int(np.ptp(offsets[fullest])), math.prod(layer.window.kernel) * tile) * channels
    count = max(1, min(4 * window // _CACHE, plan.kept // len(layer.bias) // _PAYS))
    edges = [channels * block // count for block in range(count + 1)]
    return [(plan.channels >= low) & (plan.channels < high) for low, high in itertools.pairwise(edges)]

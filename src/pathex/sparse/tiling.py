"""How a layer is cut: tiles of its outputs in registers, blocks of its input channels in the first cache."""

import itertools
import math
from typing import Any

import numpy as np

from pathex.sparse import kernels
from pathex.sparse.layers import Layer

_CACHE = 16384  # bytes of a tile's input: half of the first cache
_LONGEST = 64  # kept weights of an output in a block, more or less
_PAYS = 16  # kept weights of an output in a block, from which on a sum in parts is faster


def tiles(length: int) -> int:
    """How many tiles cover a run of floats."""
    return -(-length // (kernels.LANES * kernels.REGISTERS))


def blocks(layer: Layer, offsets: Any, length: int) -> list[Any]:
    """Which kept weights belong to each block of input channels: for the cache, and as long sums round more."""
    plan, channels = layer.plan, layer.weight.shape[1]
    tile, span = -(-length // tiles(length)), 0
    if plan.kept:
        fullest = plan.channels == np.bincount(plan.channels).argmax()
        span = int(np.ptp(offsets[fullest]))
    window = 4 * channels * min(tile + span, math.prod(layer.window.kernel) * tile)
    kept = plan.kept // len(layer.bias)
    count = min(channels, max(1, min(window // _CACHE, kept // _PAYS), kept // _LONGEST))
    edges = [channels * block // count for block in range(count + 1)]
    places = plan.channels % channels  # within a group
    return [(places >= low) & (places < high) for low, high in itertools.pairwise(edges)]

"""The kept weights of a layer in the order in which kernels read them, and the planes in which pixels lie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pathex.errors import UnsupportedOperation

Array = NDArray[Any]
_FARTHEST = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Plan:
    """Kept weights in order: by output channel, then by input channel and tap; the same for any layout.

    Attributes:
        starts: Where the weights of each output channel begin, and the end ``(outputs + 1,)``.
        channels: Input channel of each ``(kept,)``.
        rows: Row of its tap.
        columns: Column of its tap.
        values: Its value, float32.
    """

    starts: Array
    channels: Array
    rows: Array
    columns: Array
    values: Array

    @classmethod
    def of(cls, weight: Tensor, groups: int = 1) -> "Plan":
        """That of the weight ``(outputs, inputs / groups, height, width)`` of a convolution: all that is not zero."""
        places = [axis.numpy() for axis in weight.nonzero(as_tuple=True)]
        outputs, inputs = weight.shape[:2]
        counts = np.bincount(places[0], minlength=outputs)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        channels = places[1] + places[0] // max(1, outputs // groups) * inputs
        values = weight[weight != 0].numpy()
        return cls(starts, channels, places[2], places[3], np.ascontiguousarray(values))

    @property
    def kept(self) -> int:
        """How many weights."""
        return len(self.values)


@dataclass(frozen=True)
class Planes:
    """Images whose channels are planes with zeros around their pixels, in one piece of memory.

    What pads a row on the right pads the next one on the left. Several images lie in the lanes of each pixel.

    Attributes:
        channels: Channels.
        height: Rows of each.
        width: Columns of each.
        pitch: Pixels from a row to the next one.
        lead: Pixels before the first one.
        size: Pixels from a channel to the next one.
        lanes: Images.
    """

    channels: int
    height: int
    width: int
    pitch: int
    lead: int
    size: int
    lanes: int = 1

    @classmethod
    def padded(cls, form: Sequence[int], pitch: int, pads: Sequence[int], lanes: int, vector: int) -> "Planes":
        """Those of (channels, height, width) with zeros on four sides; ``vector`` is how many pixels a register has."""
        channels, height, width = form
        top, left, bottom, right = pads
        lead = -(-(top * pitch + left) // vector) * vector
        written = -(-((height - 1) * pitch + width) // vector) * vector
        size = lead + max(written, (height + bottom) * pitch + right)
        return cls(channels, height, width, pitch, lead, -(-size // vector) * vector, lanes)

    @property
    def floats(self) -> int:
        """Numbers in all."""
        return self.channels * self.size * self.lanes

    @property
    def length(self) -> int:
        """Numbers from the first pixel of a plane to its last one."""
        return ((self.height - 1) * self.pitch + self.width) * self.lanes

    def view(self, memory: Tensor) -> Tensor:
        """The pixels as ``(lanes, channels, height, width)``."""
        lanes = self.lanes
        form = (lanes, self.channels, self.height, self.width)
        strides = (1 if lanes > 1 else self.floats, self.size * lanes, self.pitch * lanes, lanes)
        return memory.as_strided(form, strides, self.lead * lanes)

    def holes(self, tiles: int, vector: int) -> tuple[Array, Array]:
        """What a kernel that writes whole vectors leaves beyond the pixels, and where each tile's part begins."""
        registers = -(-self.length // vector)
        written = np.arange(registers * vector // self.lanes)
        holes = written[written % self.pitch >= self.width]
        beyond = written[written // self.pitch >= self.height]
        holes = np.union1d(holes, beyond) * self.lanes
        edges = np.arange(tiles + 1) * registers // tiles * vector
        return holes, np.searchsorted(holes, edges)


@dataclass(frozen=True)
class Window:
    """How the taps of a convolution or a pool lie: pairs of (rows, columns), pads on top, left, bottom and right."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def reach(self, axis: int) -> int:
        """Pixels of a phase beyond those of the output."""
        return (self.kernel[axis] - 1) * self.dilation[axis] // self.stride[axis]

    def offsets(self, planes: Planes, plan: Plan) -> Array:
        """Where taps lie in the input's own planes, in numbers from their beginning, for the output's first pixel."""
        down = plan.rows * self.dilation[0] - self.pads[0]
        right = plan.columns * self.dilation[1] - self.pads[1]
        return (plan.channels * planes.size + planes.lead + down * planes.pitch + right) * planes.lanes

    def phases(self, plan: Plan) -> tuple[Array, Array]:
        """The phases of stride that taps read, as pairs of row and column, and for each tap which of them."""
        taps = zip((plan.rows, plan.columns), self.dilation, self.stride, strict=True)
        down, right = (places * dilation % stride for places, dilation, stride in taps)
        numbers = down * self.stride[1] + right
        found = np.flatnonzero(np.bincount(numbers))  # few, unlike the taps, which need no sorting
        phases = np.stack(np.divmod(found, self.stride[1]), 1)
        return phases.astype(np.int32), np.searchsorted(found, np.arange(math.prod(self.stride)))[numbers]

    def phase_offsets(self, planes: Planes, plan: Plan, phases: int, which: Array) -> Array:
        """Where taps lie in the planes of the phases that their input was split into."""
        down = plan.rows * self.dilation[0] // self.stride[0]
        right = plan.columns * self.dilation[1] // self.stride[1]
        return ((plan.channels * phases + which) * planes.size + down * planes.pitch + right) * planes.lanes


def narrow(offsets: Array, layer: str) -> Array:
    """Offsets in the 32 bits that kernels read, if they have these for the images of a layer."""
    if offsets.max(initial=0) > _FARTHEST:
        raise UnsupportedOperation(f"images are too large for the sparse kernels of {layer}: choose 'dense' for it")
    return np.ascontiguousarray(offsets, np.int32)

"""A convolution of which only kept weights are computed, forward and backward."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.sparse import training_kernels as kernels
from pathex.sparse.llvm import REGISTERS
from pathex.sparse.planes import Plan, Window, narrow
from pathex.sparse.team import Team

_CACHE = 49152  # bytes of the first cache


@dataclass(frozen=True)
class Shape:
    """How the pixels of an image of a certain size lie in the scratch memory of a convolution.

    Attributes:
        rows: Rows of the result.
        columns: Its columns.
        template: What kernels are told.
        registers: Of scratch memory for each thread, forward and backward.
        covers: Whether every pixel of the input is read.
        order: Forward places ``(kept,)`` of the weights in the order in which they are read backward.
        arrays: What the template has addresses of.
    """

    rows: int
    columns: int
    template: Any
    registers: tuple[int, int]
    covers: bool
    order: Any
    arrays: Any

    @classmethod
    def of(cls, plan: Plan, window: Window, inputs: int, height: int, width: int) -> "Shape":
        """That of the kept weights of a plan, for images of a height and a width."""
        rows, columns = _size(window, 0, height), _size(window, 1, width)
        phases, which = window.phases(plan) if plan.kept else (np.zeros((1, 2), np.int32), np.zeros(0, np.int64))
        pairs = zip((plan.rows, plan.columns), window.dilation, window.stride, strict=True)
        taps = [places * dilation // stride for places, dilation, stride in pairs]
        down, right = (int(axis.max(initial=0)) for axis in taps)
        form = np.array([
            [*_pixels(phase[0], window, 0, height, rows + down), *_pixels(phase[1], window, 1, width, columns + right)]
            for phase in phases
        ], np.int32)  # fmt: skip
        many, first, count = (form[:, each] for each in (2, 4, 5))
        pitch = max(columns, int((first + count).max()), columns + right - int(first.min()))
        outputs = len(plan.starts) - 1
        read_plane = (rows + down - 1) * pitch + max(pitch, columns + right)
        begin = form[:, 1] * pitch + first
        lead = max(0, int((down * pitch + right - begin).max()))
        gradient_plane = lead + max(rows * pitch, int((begin + np.maximum(many - 1, 0) * pitch + count).max()))
        back_plane = int(((many - 1) * pitch + count).max(initial=1))
        tap = taps[0] * pitch + taps[1]
        pair = plan.channels * len(phases) + which
        of = np.repeat(np.arange(outputs), np.diff(plan.starts))
        back = which * inputs + plan.channels
        order = np.argsort(back.astype(np.min_scalar_type(inputs * len(phases))), kind="stable")  # small ones: by radix
        back_tap = of * gradient_plane + lead + begin[which] - tap
        places = {
            "starts": plan.starts,
            "offsets": (pair * read_plane + tap) * kernels.PIXEL,
            "back_starts": np.concatenate([[0], np.cumsum(np.bincount(back, minlength=len(phases) * inputs))]),
            "back_offsets": back_tap[order] * kernels.PIXEL,
            "form": form,
        }
        covers = bool(int((many * count).sum()) == height * width)
        layer = f"a layer with {inputs} channels of {height} x {width}"
        arrays = {name: narrow(each, layer) for name, each in places.items()}
        template = _filled(
            inputs=inputs, outputs=outputs, rows=rows, columns=columns, pitch=pitch, stride=window.stride[0],
            across=window.stride[1], covers=covers, tile=_tile(inputs * len(phases), window),
            back_tile=_tile(outputs, window), phases=len(phases), read_plane=read_plane, lead=lead,
            gradient_plane=gradient_plane, back_plane=back_plane, result_plane=rows * pitch,
            **{name: each.ctypes.data for name, each in arrays.items()},
        )  # fmt: skip
        read = inputs * len(phases) * read_plane
        registers = read + outputs * rows * pitch, read + outputs * gradient_plane + inputs * len(phases) * back_plane
        return cls(rows, columns, template, registers, covers, order, arrays)


def _tile(planes: int, window: Window) -> int:
    """Registers of a tile: fewer where what it reads of all planes then stays in the first cache."""
    fits = _CACHE // (kernels.PIXEL * max(1, planes) * window.kernel[0]) - window.kernel[1]
    return min(fits, REGISTERS) if fits >= REGISTERS // 2 else REGISTERS


def _pixels(phase: int, window: Window, axis: int, size: int, most: int) -> tuple[int, int, int]:
    """Of a phase: the input's row of its place 0, or column of its first pixel; that pixel's place; its pixels."""
    stride, pad = window.stride[axis], window.pads[axis]
    first = max(0, -(-(pad - phase) // stride))
    place = first * stride + phase - pad
    count = max(0, min(-(-(size - place) // stride), most - first))
    return (phase - pad, first, count) if axis == 0 else (place, first, count)


class Unit:
    """The kernels of a convolution for kept weights that are given with each call.

    Args:
        kept: Which weights are kept, bool ``(outputs, inputs / groups, height, width)``.
        window: How its taps lie.
        groups: Groups of channels.
    """

    def __init__(self, kept: Tensor, window: Window, groups: int = 1) -> None:
        self.plan, self.window = Plan.of(kept.float(), groups), window
        self.outputs, self.inputs = len(kept), kept.shape[1] * groups
        self._shapes: dict[tuple[int, int], Shape] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies have templates of their own: addresses are of this one's arrays."""
        return {**self.__dict__, "_shapes": {}}

    def shape(self, height: int, width: int) -> Shape:
        """For images of this size."""
        if (height, width) not in self._shapes:
            self._shapes[height, width] = Shape.of(self.plan, self.window, self.inputs, height, width)
        return self._shapes[height, width]

    def forward(
        self, images: int, x: Tensor, added: Tensor | None, gate: Tensor | None, marks: Tensor | None,
        copy: Tensor | None, values: Any, bias: Any, read: "Affine", team: Team, moments: bool,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """The result, and number, mean and squared distances of each channel ``(outputs, 3)``."""
        shape = self.shape(*x.shape[2:4])
        y = x.new_empty(len(x), self.outputs, shape.rows, shape.columns, x.shape[4])
        found = np.zeros((team.threads, self.outputs if moments else 0, 3))
        bias = np.zeros(self.outputs, values.dtype) if bias is None else bias
        call = _Call(shape.template, images, read, x=x, added=added, gate=gate, marks=marks, copy=copy, y=y)
        call.run(team, kernels.forward, shape.registers[0], read.numbers, bias, values, found)
        return y, _joined(found) if moments else None

    def backward(
        self, images: int, gy: Tensor, y: Tensor, result: Any, x: Tensor, gate: Tensor | None, copy: Tensor | None,
        more: Tensor | None, values: Any, read: "Affine", team: Team, needs_x: bool, is_sum: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Any]:  # fmt: skip
        """Gradients of kept weights, bias, x and what is added; sums of what is read's, g, and of g (x - mean)."""
        # That of the result is gy + level + slope (y - mean), by the rows of ``result``.
        shape = self.shape(*x.shape[2:4])
        gx = gadded = None
        if needs_x:
            gx = torch.empty_like(x)
            gadded = torch.empty_like(x) if is_sum else None
            values = values[shape.order]
        gradients = np.zeros((team.threads, self.plan.kept), values.dtype)
        biases, sums = np.zeros((team.threads, self.outputs), values.dtype), _sums(team, x)
        call = _Call(
            shape.template, images, read, x=x, gate=gate, copy=copy, y=y, gx=gx, gadded=gadded, more=more, gy=gy
        )
        call.run(team, kernels.backward, shape.registers[1], read.numbers, result, values, gradients, biases, sums)
        weight, bias = (torch.from_numpy(each.sum(0)) for each in (gradients, biases))
        return weight, bias, gx, gadded, sums.sum((0, 3), dtype=np.float64)


def add(
    images: int, x: Tensor, added: Tensor | None, gate: Tensor | None, marks: Tensor | None, read: "Affine", team: Team
) -> Tensor:
    """max(low, scale x + shift + added), where a gate lets it; where it is positive is marked."""
    y = torch.empty_like(x)
    _Call(_planes(x), images, read, x=x, added=added, gate=gate, marks=marks, y=y).run(
        team, kernels.add, 0, read.numbers
    )
    return y


def add_backward(
    images: int, gy: Tensor, y: Tensor | None, x: Tensor, gate: Tensor | None, read: "Affine", team: Team
) -> tuple[Tensor, Tensor | None, Any]:
    """Gradients of x and, with ``y``, of what is added; sums as in `Unit.backward`."""
    gx, gadded, sums = torch.empty_like(x), None if y is None else torch.empty_like(x), _sums(team, x)
    call = _Call(_planes(x), images, read, x=x, gate=gate, copy=y, gx=gx, gadded=gadded, gy=gy)
    call.run(team, kernels.add_backward, 0, read.numbers, sums)
    return gx, gadded, sums.sum((0, 3), dtype=np.float64)


class Pool:
    """Maxima of images of a certain size in windows.

    Args:
        window: How their taps lie.
        height: Rows of the images.
        width: Columns.
    """

    def __init__(self, window: Window, height: int, width: int) -> None:
        self.form = tuple(_size(window, axis, size) for axis, size in enumerate((height, width)))
        self._window = np.array([*window.kernel, *window.dilation, *window.pads[:2]], np.int32)
        self._fields = _filled(
            rows=self.form[0], columns=self.form[1], down=window.stride[0], right=window.stride[1], stride=1, across=1,
            read_rows=height, pitch=width, form=self._window.ctypes.data,
        )  # fmt: skip
        self._registers = height * width

    def forward(self, images: int, x: Tensor, read: "Affine", team: Team) -> Tensor:
        """The maxima of max(low, scale x + shift)."""
        y = x.new_empty(*x.shape[:2], *self.form, x.shape[4])
        _Call(self._of(x), images, read, x=x, y=y).run(team, kernels.pool, self._registers, read.numbers)
        return y

    def backward(self, images: int, gy: Tensor, y: Tensor, x: Tensor, read: "Affine", team: Team) -> tuple[Tensor, Any]:
        """The gradient of x; sums as in `Unit.backward`."""
        gx, sums = torch.empty_like(x), _sums(team, x)
        call = _Call(self._of(x), images, read, x=x, y=y, gx=gx, gy=gy)
        call.run(team, kernels.pool_backward, 2 * self._registers + self.form[1], read.numbers, sums)
        return gx, sums.sum((0, 3), dtype=np.float64)

    def _of(self, x: Tensor) -> Any:
        fields = self._fields.copy()
        fields[_PLACE["inputs"]] = x.shape[1]
        return fields


def _size(window: Window, axis: int, size: int) -> int:
    """Rows or columns of a result."""
    padded = size + window.pads[axis] + window.pads[axis + 2]
    return (padded - (window.kernel[axis] - 1) * window.dilation[axis] - 1) // window.stride[axis] + 1


def _sums(team: Team, x: Tensor) -> Any:
    """Registers of two sums for each thread and channel."""
    return np.zeros((team.threads, x.shape[1], 2, x.shape[4]), NUMBERS[x.dtype])


def _planes(x: Tensor) -> Any:
    return _filled(inputs=x.shape[1], columns=x.shape[2] * x.shape[3], stride=1, across=1)


@dataclass(frozen=True)
class Affine:
    """What a layer reads: max(low, scale x + shift), by channel.

    Attributes:
        numbers: Scale, shift, and the mean about which sums are taken ``(3, C)``.
        low: The bound.
    """

    numbers: Any
    low: float


_PLACE = {name: place for place, name in enumerate(kernels.UNIT.names or ())}  # numbers of eight bytes
NUMBERS = {torch.float32: np.float32, torch.float64: np.float64}


def _filled(**fields: int) -> Any:
    """The arguments of a kernel that are always the same."""
    found = np.zeros(len(_PLACE), np.int64)
    for name, value in fields.items():
        found[_PLACE[name]] = value
    return found


class _Call:
    """The arguments of a kernel: those of a template, and tensors in blocks of images."""

    def __init__(self, template: Any, images: int, read: Affine, **tensors: Tensor | None) -> None:
        self._fields = fields = template.copy()
        self._tensors = tensors  # whose memory it has addresses of
        fields[_PLACE["images"]], fields[_PLACE["size"]] = images, read.numbers.itemsize
        fields.view(np.float64)[_PLACE["low"]] = read.low
        for name, tensor in tensors.items():
            if tensor is not None:
                place, size, strides = _PLACE[name], tensor.element_size(), tensor.stride()
                fields[place : place + 4] = tensor.data_ptr(), strides[0] * size, strides[1] * size, strides[2] * size

    def run(self, team: Team, kernel: Any, registers: int, *arrays: Any) -> None:
        """Carry it out, each thread with so many registers of scratch memory."""
        size = registers * kernels.PIXEL
        with team.lock:
            self._fields[_PLACE["scratch"]], self._fields[_PLACE["scratch_size"]] = team.scratch(size), size
            team.share(kernel, self._fields.view(kernels.UNIT), *arrays)


def in_blocks(x: Tensor) -> Tensor:
    """A copy of images ``(N, C, H, W)`` in blocks of as many as a register has lanes: ``(blocks, C, H, W, lanes)``."""
    lanes = kernels.PIXEL // x.element_size()
    x = F.pad(x, (0, 0) * 3 + (0, -len(x) % lanes)) if len(x) % lanes else x
    return x.unflatten(0, (-1, lanes)).movedim(1, -1).clone(memory_format=torch.contiguous_format)


def as_images(x: Tensor, images: int) -> Tensor:
    """So many images of blocks."""
    return x.movedim(-1, 1).flatten(0, 1)[:images]


def _joined(moments: Any) -> Any:
    """Mean and squared distances of parts as those of all: ``(outputs, 3)``."""
    seen, mean, away = (moments[:, :, each] for each in range(3))
    count = seen.sum(0)
    middle = (seen * mean).sum(0) / count
    return np.stack([count, middle, (away + seen * (mean - middle) ** 2).sum(0)], 1)

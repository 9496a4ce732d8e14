"""A convolution of which only kept weights are computed, forward and backward."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.sparse.plan import Plan, Window
from pathex.sparse.team import Team
from pathex.sparse import training_kernels as kernels

_PLACES = ("starts", "offsets", "back_starts", "back_offsets")


@dataclass(frozen=True)
class Shape:
    """How the pixels of an image of a certain size lie in the scratch memory of a convolution.

    Attributes:
        rows: Rows of the result.
        columns: Its columns.
        form: `training_kernels.FORM` of each phase ``(phases, 6)``.
        fields: Counts of registers that kernels are told.
        covers: Whether every pixel of the input is read.
        places: Offsets of taps and where those of an output begin, forward and backward.
        order: Forward places ``(kept,)`` of the weights in the order in which they are read backward.
    """

    rows: int
    columns: int
    form: Any
    fields: dict[str, int]
    covers: bool
    places: dict[str, Any]
    order: Any

    @classmethod
    def of(cls, plan: Plan, window: Window, inputs: int, height: int, width: int) -> "Shape":
        sides = [
            (size + window.pads[axis] + window.pads[axis + 2] - (window.kernel[axis] - 1) * window.dilation[axis] - 1)
            // window.stride[axis]
            + 1
            for axis, size in enumerate((height, width))
        ]
        rows, columns = sides
        phases, which = window.phases(plan) if plan.kept else (np.zeros((1, 2), np.int32), np.zeros(0, np.int64))
        taps = [plan.rows * window.dilation[0] // window.stride[0], plan.columns * window.dilation[1] // window.stride[1]]
        down, right = (int(axis.max(initial=0)) for axis in taps)
        form = np.array([
            [*_pixels(phase[0], window, 0, height, rows + down), *_pixels(phase[1], window, 1, width, columns + right)]
            for phase in phases
        ], np.int32)  # fmt: skip
        first_row, many, first, count = (form[:, each] for each in (1, 2, 4, 5))
        pitch = max(columns, int((first + count).max()), columns + right - int(first.min()))
        read_rows = rows + down
        read_plane = (read_rows - 1) * pitch + max(pitch, columns + right)
        begin = first_row * pitch + first
        lead = max(0, int((down * pitch + right - begin).max()))
        end = int((begin + np.maximum(many - 1, 0) * pitch + count).max())
        gradient_plane = lead + max(rows * pitch, end)
        back_plane = int(((many - 1) * pitch + count).max(initial=0))
        tap = taps[0] * pitch + taps[1]
        pair = plan.channels * len(phases) + which
        outputs = len(plan.starts) - 1
        of = np.repeat(np.arange(outputs), np.diff(plan.starts))
        back = which * inputs + plan.channels
        order = np.argsort(back, kind="stable")
        back_tap = of * gradient_plane + lead + begin[which] - tap
        places = {
            "starts": plan.starts,
            "offsets": (pair * read_plane + tap) * kernels.PIXEL,
            "back_starts": np.concatenate([[0], np.cumsum(np.bincount(back, minlength=len(phases) * inputs))]),
            "back_offsets": back_tap[order] * kernels.PIXEL,
        }
        fields = {"phases": len(phases), "read_rows": read_rows, "read_plane": read_plane, "lead": lead}
        fields |= {"rows": rows, "columns": columns, "pitch": pitch, "form": form.ctypes.data}
        fields |= {"gradient_plane": gradient_plane, "back_plane": back_plane, "result_plane": rows * pitch}
        covers = int((many * count).sum()) == height * width
        found = {name: np.ascontiguousarray(each, np.int32) for name, each in places.items()}
        return cls(rows, columns, form, fields, covers, found, order)


def _pixels(phase: int, window: Window, axis: int, size: int, most: int) -> tuple[int, int, int]:
    """Of a phase: the input's place of its own place 0 or of its first pixel, that place, and its pixels.

    Rows begin at place 0, columns at the first pixel.
    """
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

    def shape(self, height: int, width: int) -> Shape:
        """For images of this size."""
        if (height, width) not in self._shapes:
            self._shapes[height, width] = Shape.of(self.plan, self.window, self.inputs, height, width)
        return self._shapes[height, width]

    def forward(
        self, images: int, x: Tensor, added: Tensor | None, copy: Tensor | None, values: Any, bias: Any,
        read: "Affine", team: Team, moments: bool,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """The result, and number, mean and squared distances of each channel ``(outputs, 3)``."""
        shape = self.shape(*x.shape[2:4])
        y = x.new_empty(len(x), self.outputs, shape.rows, shape.columns, x.shape[4])
        call = _Call(team, images, x, read, y=y, added=added, copy=copy, **self._fields(shape))
        call.vectors(values=values, bias=np.zeros(self.outputs) if bias is None else bias)
        found = call.zeros("moments", (team.threads, self.outputs, 3), np.float64) if moments else None
        call.run(kernels.forward, self._registers(shape, "read_plane") + self.outputs * shape.fields["result_plane"])
        return y, None if found is None else _joined(found)

    def backward(
        self, images: int, gy: Tensor, y: Tensor, level: Any, slope: Any, mean: Any, x: Tensor, copy: Tensor | None, more: Tensor | None,
        values: Any, read: "Affine", team: Team, needs_x: bool, is_sum: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Any]:  # fmt: skip
        """Gradients of kept weights, bias, x and what is added by the gradient gy + level + slope (y - mean), with more
        of what was copied; sums of the gradient g of what is read and of g (x - mean), by channel ``(inputs, 2)``."""
        shape = self.shape(*x.shape[2:4])
        call = _Call(team, images, x, read, gy=gy, y=y, copy=copy, more=more, **self._fields(shape))
        call.vectors(level=level, slope=slope, result_mean=mean)
        registers = self._registers(shape, "read_plane") + self.outputs * shape.fields["gradient_plane"]
        gx = gadded = None
        if needs_x:
            gx = (torch.empty_like if shape.covers else torch.zeros_like)(x)
            gadded = torch.empty_like(x) if is_sum else None
            call.tensors(gx=gx, gadded=gadded)
            call.vectors(back_values=values[shape.order], nothing=np.zeros(self.inputs * shape.fields["phases"]))
            registers += self._registers(shape, "back_plane")
        gradients = call.zeros("gradients", (team.threads, self.plan.kept))
        biases = call.zeros("bias_gradients", (team.threads, self.outputs))
        sums = call.sums(self.inputs)
        call.run(kernels.backward, registers)
        weight, bias = (torch.from_numpy(each.sum(0)) for each in (gradients, biases))
        return weight, bias, gx, gadded, sums.sum((0, 3), dtype=np.float64)

    def _fields(self, shape: Shape) -> dict[str, Any]:
        fields: dict[str, Any] = {"inputs": self.inputs, "outputs": self.outputs, "kept": self.plan.kept}
        fields |= {"stride": self.window.stride[0], "across": self.window.stride[1], **shape.fields}
        return fields | {name: places.ctypes.data for name, places in shape.places.items()}

    def _registers(self, shape: Shape, plane: str) -> int:
        return self.inputs * shape.fields["phases"] * shape.fields[plane]


def add(images: int, x: Tensor, added: Tensor | None, read: "Affine", team: Team) -> Tensor:
    """max(low, scale x + shift + added)."""
    y = torch.empty_like(x)
    call = _Call(team, images, x, read, y=y, added=added, inputs=x.shape[1], columns=x.shape[2:4].numel())
    call.run(kernels.add)
    return y


def add_backward(
    images: int, gy: Tensor, y: Tensor | None, x: Tensor, read: "Affine", team: Team, is_sum: bool
) -> tuple[Tensor, Tensor | None, Any]:
    """Gradients of x and of what is added; `Affine.back`'s sums."""
    gx, gadded = torch.empty_like(x), torch.empty_like(x) if is_sum else None
    form = {"inputs": x.shape[1], "columns": x.shape[2:4].numel()}
    call = _Call(team, images, x, read, copy=y, gx=gx, gadded=gadded, gy=gy, **form)
    sums = call.sums(x.shape[1])
    call.run(kernels.add_backward)
    return gx, gadded, sums.sum((0, 3), dtype=np.float64)


@dataclass(frozen=True)
class Affine:
    """What a layer reads: max(low, scale x + shift), by channel.

    Attributes:
        scale: Factors ``(C,)``.
        shift: Terms ``(C,)``.
        mean: The x about which sums are taken ``(C,)``.
        low: The bound.
    """

    scale: Any
    shift: Any
    mean: Any
    low: float


class _Call:
    """The arguments of a kernel."""

    def __init__(self, team: Team, images: int, x: Tensor, read: Affine, **fields: Any) -> None:
        self._team, self._held = team, [x]
        self._like = np.float32(0.0) if x.dtype == torch.float32 else np.float64(0.0)
        self._fields: dict[str, Any] = {"size": x.element_size(), "images": images, "low": read.low}
        given = {name: value for name, value in fields.items() if name in kernels.TENSORS}
        self.tensors(x=x, **given)
        self._fields |= {name: value for name, value in fields.items() if name not in given}
        self.vectors(scale=read.scale, shift=read.shift, mean=read.mean)
        self._registers = kernels.PIXEL // x.element_size()

    def tensors(self, **values: Tensor | None) -> None:
        """Those of blocks of images, if they are there."""
        for name, value in values.items():
            if value is None:
                continue
            self._held.append(value)
            self._fields[name] = value.data_ptr()
            for axis, stride in zip(("block", "plane", "row"), value.stride(), strict=False):
                self._fields[f"{name}_{axis}"] = stride * value.element_size()

    def vectors(self, **values: Any) -> None:
        """Numbers that lie one after another."""
        for name, value in values.items():
            self._array(name, np.ascontiguousarray(value, self._like.dtype))

    def zeros(self, name: str, form: tuple[int, ...], dtype: Any = None) -> Any:
        """What a kernel adds to."""
        return self._array(name, np.zeros(form, dtype or self._like.dtype))

    def sums(self, channels: int) -> Any:
        """Registers of two sums for each thread and channel."""
        return self.zeros("sums", (self._team.threads, channels, 2, self._registers))

    def _array(self, name: str, array: Any) -> Any:
        self._held.append(array)
        self._fields[name] = array.ctypes.data
        return array

    def run(self, kernel: Any, registers: int = 0) -> None:
        """Carry it out, each thread with so many registers of scratch memory."""
        size = registers * kernels.PIXEL
        with self._team.lock:
            self._fields |= {"scratch": self._team.scratch(size), "scratch_size": size}
            row = np.array([tuple(self._fields.get(name, 0) for name in kernels.UNIT.names)], kernels.UNIT)
            self._team.share(kernel, self._like, row)


def in_blocks(x: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` in blocks of as many as a register has lanes: ``(blocks, C, H, W, lanes)``."""
    lanes = kernels.PIXEL // x.element_size()
    x = F.pad(x, (0, 0) * 3 + (0, -len(x) % lanes)) if len(x) % lanes else x
    return x.unflatten(0, (-1, lanes)).movedim(1, -1).contiguous()


def as_images(x: Tensor, images: int) -> Tensor:
    """So many images of blocks."""
    return x.movedim(-1, 1).flatten(0, 1)[:images]


def _joined(moments: Any) -> Any:
    """Mean and squared distances of parts as those of all: ``(outputs, 3)``."""
    seen, mean, away = (moments[:, :, each] for each in range(3))
    count = seen.sum(0)
    middle = (seen * mean).sum(0) / count
    return np.stack([count, middle, (away + seen * (mean - middle) ** 2).sum(0)], 1)

"""Kernels for training: both passes of a layer, a block of images at a time, the images in the lanes of registers.

What the layer reads is normalised and bounded on the way into padded planes that stay in the cache of one core.
"""

from typing import Any

import numba
import numpy as np

from pathex.sparse import pieces
from pathex.sparse.kernels import forget_old
from pathex.sparse.llvm import LANES, MARK, integers, rounded
from pathex.sparse.pieces import (
    PRODUCTS,
    fill,
    pass_back,
    products,
    raise_row,
    route_row,
    squares,
    store,
    tile,
    whole_gradient,
)

PIXEL = 4 * LANES
"""Bytes of a register: the numbers of a pixel in a block of images."""

TENSORS = ("x", "added", "copy", "y", "gx", "gadded", "more", "gy", "gate", "marks")
UNIT = np.dtype(
    [(name, np.int64) for name in ("size", "images", "inputs", "outputs", "rows", "columns", "pitch", "stride")]
    + [(name, np.int64) for name in ("across", "phases", "form", "down", "right", "read_rows", "read_plane", "lead")]
    + [(name, np.int64) for name in ("gradient_plane", "covers", "tile", "back_tile", "scratch", "scratch_size")]
    + [(name, np.int64) for name in ("back_plane", "result_plane", "starts", "offsets", "back_starts", "back_offsets")]
    + [(f"{tensor}{axis}", np.int64) for tensor in TENSORS for axis in ("", "_block", "_plane", "_row")]
    + [("low", np.float64)]
)
"""A layer: addresses, bytes of a number and from block to block, plane to plane, row to row of tensors; what lies in
scratch memory is counted in registers."""

FORM = ("top", "first_row", "rows", "left", "first", "count")
"""Of a phase of the stride: which row of the input its row 0 is, its rows of pixels, the column of the input of its
first pixel, its first pixel in a row, and how many."""


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _read_plane(
    like: Any, u: Any, read: Any, valid: int, block: int, channel: int, row: int, rows: int, column: int, count: int,
    target: int, step: int,
) -> None:  # fmt: skip
    """Every so many rows and pixels of max(low, scale x + shift + added) where a gate lets it, copied and marked."""
    at, bits = column * PIXEL, column * MARK // 8
    pieces.read(
        read[0, channel], read[1, channel], rounded(like, u.low), u.added, u.copy, u.gate, u.marks, valid, rows, count,
        u.across, target, step, u.x + block * u.x_block + channel * u.x_plane + row * u.x_row + at, u.stride * u.x_row,
        u.added + block * u.added_block + channel * u.added_plane + row * u.added_row + at, u.stride * u.added_row,
        u.copy + block * u.copy_block + channel * u.copy_plane + row * u.copy_row + at, u.stride * u.copy_row,
        u.gate + block * u.gate_block + channel * u.gate_plane + row * u.gate_row + bits, u.stride * u.gate_row,
        u.marks + block * u.marks_block + channel * u.marks_plane + row * u.marks_row + bits, u.stride * u.marks_row,
    )  # fmt: skip


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _clear(like: Any, count: int, target: int) -> None:
    """Zeros in a run of registers."""
    fill(rounded(like, 0.0), 1, count, target, 0)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _read(like: Any, u: Any, read: Any, planes: int, block: int, valid: int, again: bool) -> None:
    """What is read of a block of images: planes for each channel and phase of the stride, with zeros around."""
    form, one, nothing, low = integers(u.form), rounded(like, 1.0), rounded(like, 0.0), rounded(like, -np.inf)
    line = u.pitch * PIXEL
    for pair in range(u.inputs * u.phases):
        channel, f = pair // u.phases, 6 * (pair % u.phases)
        top, skipped, rows = form[f], form[f + 1], form[f + 2]
        column, first, count = form[f + 3], form[f + 4], form[f + 5]
        begin = planes + pair * u.read_plane * PIXEL
        target, row = begin + skipped * line + first * PIXEL, skipped * u.stride + top
        _clear(like, skipped * u.pitch + first, begin)
        fill(nothing, rows - 1, u.pitch - count, target + count * PIXEL, line)
        if again and u.copy != 0:
            copy = u.copy + block * u.copy_block + channel * u.copy_plane + row * u.copy_row + column * PIXEL
            pieces.read(
                one, nothing, low, 0, 0, 0, 0, valid, rows, count, u.across, target, line, copy, u.stride * u.copy_row,
                0, 0, 0, 0, 0, 0, 0, 0,
            )  # fmt: skip
        else:
            _read_plane(like, u, read, valid, block, channel, row, rows, column, count, target, line)
        done = skipped * u.pitch + first
        if rows > 0:
            done += (rows - 1) * u.pitch + count
        _clear(like, u.read_plane - done, begin + done * PIXEL)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _pass_plane(
    like: Any, u: Any, read: Any, valid: int, block: int, channel: int, row: int, rows: int, column: int, count: int,
    given: int, step: int, sums: int,
) -> None:  # fmt: skip
    """The gradient of what `_read_plane` read, to x and to what was added."""
    at, bits = column * PIXEL, column * MARK // 8
    pass_back(
        read[0, channel], read[1, channel], rounded(like, u.low), read[2, channel], u.gadded, u.more, u.gate, valid,
        rows, count, u.across, u.gx + block * u.gx_block + channel * u.gx_plane + row * u.gx_row + at,
        u.stride * u.gx_row, given, step,
        u.x + block * u.x_block + channel * u.x_plane + row * u.x_row + at, u.stride * u.x_row,
        u.gadded + block * u.gadded_block + channel * u.gadded_plane + row * u.gadded_row + at, u.stride * u.gadded_row,
        u.copy + block * u.copy_block + channel * u.copy_plane + row * u.copy_row + at, u.stride * u.copy_row,
        u.more + block * u.more_block + channel * u.more_plane + row * u.more_row + at, u.stride * u.more_row,
        u.gate + block * u.gate_block + channel * u.gate_plane + row * u.gate_row + bits, u.stride * u.gate_row, sums,
    )  # fmt: skip


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _write(like: Any, u: Any, moments: Any, planes: int, block: int, valid: int) -> None:
    """The results of a block of images to where they belong; how many there are, their mean and squares about it."""
    line, more = u.pitch * PIXEL, np.float64(u.rows * u.columns * valid)
    for o in range(u.outputs):
        source, target = planes + o * u.result_plane * PIXEL, u.y + block * u.y_block + o * u.y_plane
        total = np.float64(store(like, valid, u.rows, u.columns, target, u.y_row, source, line))
        if len(moments):
            mean = total / more
            away = np.float64(squares(rounded(like, mean), valid, u.rows, u.columns, source, line))
            seen, distance = moments[o, 0], mean - moments[o, 1]
            moments[o, 0] = seen + more
            moments[o, 1] += distance * more / moments[o, 0]
            moments[o, 2] += away + distance * distance * seen * more / moments[o, 0]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _sum(
    x: int, offsets: int, values: Any, starts: Any, first: int, last: int, bias: Any, y: int, plane: int, run: int,
    most: int,
) -> None:  # fmt: skip
    """Sums over kept weights for a run of pixels: all outputs of a tile before the next tile."""
    tiles = (run + most - 1) // most
    for t in range(tiles):
        begin, end = t * run // tiles, (t + 1) * run // tiles
        at = begin * PIXEL
        for o in range(first, last):
            tile(
                bias[o], end - begin, x + at, offsets, values.ctypes.data, np.int64(starts[o]), np.int64(starts[o + 1]),
                y + (o - first) * plane * PIXEL + at,
            )  # fmt: skip


@numba.njit(nogil=True, error_model="numpy", cache=True)
def forward(units: Any, read: Any, bias: Any, values: Any, moments: Any, part: int, parts: int) -> None:
    """Y = bias + the convolution of max(low, scale x + shift + added), and the moments of y where there is room."""
    u, like = units[0], bias[0]
    lanes = PIXEL // u.size
    blocks = (u.images + lanes - 1) // lanes
    planes = u.scratch + part * u.scratch_size
    results = planes + u.inputs * u.phases * u.read_plane * PIXEL
    run = (u.rows - 1) * u.pitch + u.columns
    for block in range(-(-part * blocks // parts), -(-(part + 1) * blocks // parts)):
        valid = min(lanes, u.images - block * lanes)
        _read(like, u, read, planes, block, valid, False)
        _sum(planes, u.offsets, values, integers(u.starts), 0, u.outputs, bias, results, u.result_plane, run, u.tile)
        _write(like, u, moments[part], results, block, valid)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _read_gradient(like: Any, u: Any, result: Any, totals: Any, planes: int, block: int, valid: int) -> None:
    """Planes of gy + level + slope (y - mean) with zeros around, and their sums."""
    line = u.pitch * PIXEL
    for o in range(u.outputs):
        begin = planes + o * u.gradient_plane * PIXEL
        target = begin + u.lead * PIXEL
        _clear(like, u.lead, begin)
        fill(rounded(like, 0.0), u.rows - 1, u.pitch - u.columns, target + u.columns * PIXEL, line)
        totals[o] += whole_gradient(
            result[0, o], result[1, o], result[2, o], valid, u.rows, u.columns, target, line,
            u.gy + block * u.gy_block + o * u.gy_plane, u.gy_row, u.y + block * u.y_block + o * u.y_plane, u.y_row,
        )  # fmt: skip
        done = u.lead + (u.rows - 1) * u.pitch + u.columns
        _clear(like, u.gradient_plane - done, begin + done * PIXEL)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _write_gradient(like: Any, u: Any, read: Any, sums: Any, planes: int, block: int, valid: int) -> None:
    """Gradients of a block of images back to what was read, with the sums that scale and shift need."""
    form = integers(u.form)
    for pair in range(u.inputs * u.phases):
        channel, f = pair // u.phases, 6 * (pair % u.phases)
        if u.covers == 0 and f == 0:
            _clear(like, u.gx_plane // PIXEL, u.gx + block * u.gx_block + channel * u.gx_plane)
        _pass_plane(
            like, u, read, valid, block, channel, form[f + 1] * u.stride + form[f], form[f + 2], form[f + 3],
            form[f + 5], planes + (f // 6 * u.inputs + channel) * u.back_plane * PIXEL, u.pitch * PIXEL,
            sums[channel].ctypes.data,
        )  # fmt: skip


@numba.njit(nogil=True, error_model="numpy", cache=True)
def backward(
    units: Any, read: Any, result: Any, values: Any, gradients: Any, biases: Any, sums: Any, part: int, parts: int
) -> None:
    """Gradients of kept weights and bias; with ``gx``, back to what was read, whose sums scale and shift need."""
    u, like = units[0], read[0, 0]
    lanes = PIXEL // u.size
    blocks = (u.images + lanes - 1) // lanes
    planes = u.scratch + part * u.scratch_size
    given = planes + u.inputs * u.phases * u.read_plane * PIXEL
    back = given + u.outputs * u.gradient_plane * PIXEL
    starts, form = integers(u.starts), integers(u.form)
    run = (u.rows - 1) * u.pitch + u.columns
    tiles = (run + PRODUCTS - 1) // PRODUCTS
    nothing = np.zeros(u.inputs * u.phases, read.dtype)
    for block in range(-(-part * blocks // parts), -(-(part + 1) * blocks // parts)):
        valid = min(lanes, u.images - block * lanes)
        _read(like, u, read, planes, block, valid, True)
        _read_gradient(like, u, result, biases[part], given, block, valid)
        for t in range(tiles):
            begin, end = t * run // tiles, (t + 1) * run // tiles
            for o in range(u.outputs):
                products(
                    like, end - begin, planes + begin * PIXEL, u.offsets, gradients[part].ctypes.data,
                    np.int64(starts[o]), np.int64(starts[o + 1]),
                    given + (o * u.gradient_plane + u.lead + begin) * PIXEL,
                )  # fmt: skip
        if u.gx != 0:
            for phase in range(u.phases):
                rows, count, first = form[6 * phase + 2], form[6 * phase + 5], phase * u.inputs
                if rows > 0 and count > 0:
                    _sum(
                        given, u.back_offsets, values, integers(u.back_starts), first, first + u.inputs, nothing,
                        back + first * u.back_plane * PIXEL, u.back_plane, (rows - 1) * u.pitch + count, u.back_tile,
                    )  # fmt: skip
            _write_gradient(like, u, read, sums[part], back, block, valid)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def add(units: Any, read: Any, part: int, parts: int) -> None:
    """Y = max(low, scale x + shift + added), planes in a row."""
    u, like = units[0], read[0, 0]
    lanes = PIXEL // u.size
    work = (u.images + lanes - 1) // lanes * u.inputs
    for plane in range(part * work // parts, (part + 1) * work // parts):
        block, channel = plane // u.inputs, plane % u.inputs
        valid, y = min(lanes, u.images - block * lanes), u.y + block * u.y_block + channel * u.y_plane
        _read_plane(like, u, read, valid, block, channel, 0, 1, 0, u.columns, y, 0)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def add_backward(units: Any, read: Any, sums: Any, part: int, parts: int) -> None:
    """Gradients back to x and to what is added, with the sums that scale and shift need."""
    u, like = units[0], read[0, 0]
    lanes = PIXEL // u.size
    work = (u.images + lanes - 1) // lanes * u.inputs
    for plane in range(part * work // parts, (part + 1) * work // parts):
        block, channel = plane // u.inputs, plane % u.inputs
        valid, gy = min(lanes, u.images - block * lanes), u.gy + block * u.gy_block + channel * u.gy_plane
        _pass_plane(like, u, read, valid, block, channel, 0, 1, 0, u.columns, gy, 0, sums[part, channel].ctypes.data)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _tap(u: Any, row: int, tap: int) -> tuple[int, int, int]:
    """Of a row of maxima where the first is that a tap reads a pixel for, how many are, and where that pixel is."""
    window = integers(u.form)
    at = row * u.down - window[4] + tap // window[1] * window[2]
    place = tap % window[1] * window[3] - window[5]
    first = max(0, -(place // u.right))
    count = max(0, min(u.columns, (u.pitch - place + u.right - 1) // u.right) - first)
    if not 0 <= at < u.read_rows:
        count = 0
    return first * PIXEL, count, (at * u.pitch + place + first * u.right) * PIXEL


@numba.njit(nogil=True, error_model="numpy", cache=True)
def pool(units: Any, read: Any, part: int, parts: int) -> None:
    """Y = the maxima of max(low, scale x + shift) in windows."""
    u, like = units[0], read[0, 0]
    lanes, window = PIXEL // u.size, integers(u.form)
    plane = u.scratch + part * u.scratch_size
    work = (u.images + lanes - 1) // lanes * u.inputs
    for item in range(part * work // parts, (part + 1) * work // parts):
        block, channel = item // u.inputs, item % u.inputs
        valid = min(lanes, u.images - block * lanes)
        _read_plane(like, u, read, valid, block, channel, 0, u.read_rows, 0, u.pitch, plane, u.pitch * PIXEL)
        for row in range(u.rows):
            y = u.y + block * u.y_block + channel * u.y_plane + row * u.y_row
            fill(rounded(like, -np.inf), 1, u.columns, y, 0)
            for tap in range(window[0] * window[1]):
                first, count, source = _tap(u, row, tap)
                raise_row(like, count, u.right, y + first, plane + source)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def pool_backward(units: Any, read: Any, sums: Any, part: int, parts: int) -> None:
    """Gradients back to x, with the sums that scale and shift need: each to the first of the largest in its window."""
    u, like = units[0], read[0, 0]
    lanes, window = PIXEL // u.size, integers(u.form)
    plane = u.scratch + part * u.scratch_size
    back = plane + u.read_rows * u.pitch * PIXEL
    left = back + u.read_rows * u.pitch * PIXEL
    one, nothing, low = rounded(like, 1.0), rounded(like, 0.0), rounded(like, -np.inf)
    work = (u.images + lanes - 1) // lanes * u.inputs
    for item in range(part * work // parts, (part + 1) * work // parts):
        block, channel = item // u.inputs, item % u.inputs
        valid = min(lanes, u.images - block * lanes)
        _read_plane(like, u, read, valid, block, channel, 0, u.read_rows, 0, u.pitch, plane, u.pitch * PIXEL)
        _clear(like, u.read_rows * u.pitch, back)
        for row in range(u.rows):
            y = u.y + block * u.y_block + channel * u.y_plane + row * u.y_row
            gy = u.gy + block * u.gy_block + channel * u.gy_plane + row * u.gy_row
            pieces.read(one, nothing, low, 0, 0, 0, 0, valid, 1, u.columns, 1, left, 0, gy, 0, 0, 0, 0, 0, 0, 0, 0, 0)
            for tap in range(window[0] * window[1]):
                first, count, source = _tap(u, row, tap)
                route_row(like, count, u.right, left + first, y + first, plane + source, back + source)
        _pass_plane(
            like, u, read, valid, block, channel, 0, u.read_rows, 0, u.pitch, back, u.pitch * PIXEL,
            sums[part, channel].ctypes.data,
        )  # fmt: skip


forget_old("training_kernels", forward)

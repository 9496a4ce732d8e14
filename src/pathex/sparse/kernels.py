"""Kernels for the kept weights of layers, compiled once for the processor at hand.

`run` carries out a table of steps, alone or as one of several threads.
"""

import logging
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from pathex.sparse import llvm, pieces
from pathex.sparse.llvm import LANES, REGISTERS, arrived, floats, give_way, integers
from pathex.sparse.pieces import bounded_tile, clear, copy_evens, raise_to_evens

ALIGNMENT = 64  # bytes of a cache line

CONVOLVE, SPLIT, MAXIMUM, MEAN = range(4)
STEP = np.dtype(
    [(name, np.int64) for name in ("kind", "x", "y", "residual", "offsets", "values", "starts", "bias", "outputs")]
    + [(name, np.int64) for name in ("source_plane", "plane", "residual_plane", "length", "lanes", "tiles")]
    + [
        (name, np.int64)
        for name in ("holes", "hole_starts", "height", "width", "source_pitch", "pitch", "stride", "across")
    ]
    + [(name, np.int64) for name in ("top", "left", "rows", "columns", "pairs", "phases", "phase_count")]
    + [(name, np.int64) for name in ("tap_rows", "tap_columns", "dilation", "dilation_across")]
    + [("low", np.float32), ("high", np.float32)]
)
"""A step: addresses in bytes, what is counted in floats (planes, length) or in pixels (pitches, sides)."""


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _convolve(step: Any, part: int, parts: int) -> None:
    """All outputs of a tile before the next tile: what they read stays in the cache."""
    starts, bias = integers(step.starts), floats(step.bias)
    holes, hole_starts = integers(step.holes), integers(step.hole_starts)
    outputs, registers = step.outputs, (step.length + LANES - 1) // LANES
    work = step.tiles * outputs
    unit, last = part * work // parts, (part + 1) * work // parts
    while unit < last:
        t = unit // outputs
        first_output = unit - t * outputs
        last_output = min(outputs, first_output + last - unit)
        unit += last_output - first_output
        begin, end = t * registers // step.tiles, (t + 1) * registers // step.tiles
        x = step.x + begin * LANES * 4
        for o in range(first_output, last_output):
            y = step.y + (o * step.plane + begin * LANES) * 4
            residual = step.residual
            if residual != 0:
                residual += (o * step.residual_plane + begin * LANES) * 4
            bounded_tile(
                bias[o], step.low, step.high, end - begin, x, step.offsets, step.values, np.int64(starts[o]),
                np.int64(starts[o + 1]), y, residual,
            )  # fmt: skip
            y = step.y + o * step.plane * 4
            if step.lanes == 1:
                plane = floats(y)
                for h in range(hole_starts[t], hole_starts[t + 1]):
                    plane[holes[h]] = 0.0
            else:
                for h in range(hole_starts[t], hole_starts[t + 1]):
                    clear(y + holes[h] * 4)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _split(step: Any, part: int, parts: int) -> None:
    """Padded planes of every stride-th row and column: the pairs of channel and phase that a layer reads."""
    pairs, phases, lanes, stride = integers(step.pairs), integers(step.phases), step.lanes, step.across
    for pair in range(part * step.outputs // parts, (part + 1) * step.outputs // parts):
        channel, phase = pairs[pair] // step.phase_count, pairs[pair] % step.phase_count
        down, right = phases[2 * phase] - step.top, phases[2 * phase + 1] - step.left
        source, plane = step.x + channel * step.source_plane * 4, step.y + pairs[pair] * step.plane * 4
        begin = max(0, (stride - 1 - right) // stride)
        count = min(step.pitch, (step.width - right + stride - 1) // stride) - begin
        for row in range(step.rows):
            at = row * step.stride + down
            if 0 <= at < step.height:
                target = plane + (row * step.pitch + begin) * lanes * 4
                _copy(
                    target, source + (at * step.source_pitch + right + begin * stride) * lanes * 4, count, stride, lanes
                )


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _copy(target: int, source: int, count: int, stride: int, lanes: int) -> None:
    """Every stride-th pixel of a row."""
    to, of = floats(target), floats(source)
    if lanes > 1:
        for column in range(count):
            for lane in range(LANES):
                to[column * LANES + lane] = of[column * stride * LANES + lane]
    elif stride == 2 and count >= LANES:
        for column in range(0, count - LANES, LANES):
            copy_evens(target + column * 4, source + column * 8)
        copy_evens(target + (count - LANES) * 4, source + (count - LANES) * 8)
    elif stride == 1:
        for column in range(count):
            to[column] = of[column]
    else:
        for column in range(count):
            to[column] = of[column * stride]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _raise(target: int, source: int, count: int, stride: int) -> None:
    """The larger of a run and every stride-th float of another; NaN is larger than all."""
    to, of = floats(target), floats(source)
    if stride == 2 and count >= LANES:
        for at in range(0, count - LANES, LANES):
            raise_to_evens(target + at * 4, source + at * 8)
        raise_to_evens(target + (count - LANES) * 4, source + (count - LANES) * 8)
    elif stride == 1:
        for at in range(count):
            value, largest = of[at], to[at]
            to[at] = value if (value > largest) | (value != value) else largest  # noqa: PLR0124
    else:
        for at in range(count):
            value, largest = of[stride * at], to[at]
            to[at] = value if (value > largest) | (value != value) else largest  # noqa: PLR0124


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _maximum(step: Any, part: int, parts: int) -> None:
    """A max pool: rows first, into a row with room on both sides, then columns."""
    lanes, span = step.lanes, step.width * step.lanes
    room = step.columns * step.across + step.tap_columns * step.dilation_across + step.left + LANES
    row = np.full((step.width + room) * lanes, -np.inf, np.float32)
    inner = row.ctypes.data + step.left * lanes * 4
    for channel in range(part * step.outputs // parts, (part + 1) * step.outputs // parts):
        for i in range(step.rows):
            row[step.left * lanes : step.left * lanes + span] = -np.inf
            for tap in range(step.tap_rows):
                at = i * step.stride + tap * step.dilation - step.top
                if 0 <= at < step.height:
                    place = channel * step.source_plane + at * step.source_pitch * lanes
                    _raise(inner, step.x + place * 4, span, 1)
            target = step.y + (channel * step.plane + i * step.pitch * lanes) * 4
            to = floats(target)
            for at in range(step.columns * lanes):
                to[at] = -np.inf
            for tap in range(step.tap_columns):
                begin = row.ctypes.data + tap * step.dilation_across * lanes * 4
                if lanes == 1:
                    _raise(target, begin, step.columns, step.across)
                else:
                    for column in range(step.columns):
                        _raise(target + column * lanes * 4, begin + column * step.across * lanes * 4, LANES, 1)


@numba.njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc"})
def _mean(step: Any, part: int, parts: int) -> None:
    """The mean of each plane."""
    share = np.float32(1.0 / (step.height * step.width))
    for channel in range(part * step.outputs // parts, (part + 1) * step.outputs // parts):
        target = floats(step.y + channel * step.plane * 4)
        for lane in range(step.lanes):
            total = np.float32(0.0)
            for row in range(step.height):
                at = channel * step.source_plane + row * step.source_pitch * step.lanes + lane
                source = floats(step.x + at * 4)
                for column in range(step.width):
                    total += source[column * step.lanes]
            target[lane] = total * share


_ARGUMENTS = (numba.from_dtype(STEP)[::1], *[types.int64] * 5)


def _run(steps: Any, first: int, last: int, part: int, parts: int, barrier: int) -> None:
    for s in range(first, last):
        step = steps[s]
        if step.kind == CONVOLVE:
            _convolve(step, part, parts)
        elif step.kind == SPLIT:
            _split(step, part, parts)
        elif step.kind == MAXIMUM:
            _maximum(step, part, parts)
        else:
            _mean(step, part, parts)
        if parts > 1:
            seen = arrived(barrier, 1)
            turns = 0
            while seen < parts * (s - first + 1):
                turns += 1
                if turns % 1024 == 0:
                    give_way()
                seen = arrived(barrier, 0)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def wait(address: int, count: int, turns: int) -> bool:
    """Whether an int64 comes to a count while it is looked at so many times."""
    for turn in range(turns):
        if arrived(address, 0) >= count:
            return True
        if turn % 1024 == 1023:
            give_way()
    return False


def forget_old(module: str, dispatcher: Any) -> Path:
    """Compiled functions of a module that are older than the pieces they are made of; where they are kept."""
    kept = Path(dispatcher.stats.cache_path)
    for index in kept.glob(f"{module}.*.nbi"):  # numba looks at the module's own file alone
        if index.stat().st_mtime < max(Path(str(each.__file__)).stat().st_mtime for each in (llvm, pieces)):
            index.unlink(missing_ok=True)
    return kept


def _compiled() -> Any:
    dispatcher = numba.njit(nogil=True, error_model="numpy", cache=True)(_run)
    kept = forget_old("kernels", dispatcher)
    if not any(kept.glob("kernels._run-*.nbi")):
        logging.getLogger(__name__).warning("pathex compiles its kernels for this processor, once: some seconds")
    dispatcher.compile(_ARGUMENTS)
    return dispatcher


run = _compiled()
"""``run(steps, first, last, part, parts, barrier)``: steps of a table as one of several threads; those that are not
alone meet after each step at a counter, an int64 at the address ``barrier`` that is zero before."""


def zeros(count: int) -> Any:
    """A float32 array that begins on a cache line, with room to read a tile beyond its end."""
    room = np.zeros(count + REGISTERS * LANES + ALIGNMENT, np.float32)
    begin = -(room.ctypes.data // 4) % (ALIGNMENT // 4)
    return room[begin:]

"""Kernels for the kept weights of layers: LLVM written from numba, compiled once for the processor at hand.

A tile of outputs stays in vector registers; for each kept weight one broadcast, and for each register one load and one
fused multiply-add. `run` carries out a table of steps, alone or as one of several threads.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _width() -> tuple[int, int]:
    """Floats in a vector register of this processor, and how many registers hold sums."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 24
    if features.get("avx2"):
        return 8, 14
    return 4, 24 if features.get("neon") else 12


LANES, REGISTERS = _width()
CHAINS = 8  # sums that the units for fused multiply-adds work on at once: four cycles, two units
ALIGNMENT = 64  # bytes of a cache line

CONVOLVE, SPLIT, MAXIMUM, MEAN = range(4)
STEP = np.dtype(
    [(name, np.int64) for name in ("kind", "x", "y", "residual", "offsets", "values", "starts", "bias", "outputs")]
    + [(name, np.int64) for name in ("source_plane", "plane", "residual_plane", "length", "lanes", "tiles")]
    + [(name, np.int64) for name in ("holes", "hole_starts", "height", "width", "source_pitch", "pitch", "stride", "across")]
    + [(name, np.int64) for name in ("top", "left", "rows", "columns", "pairs", "phases", "phase_count")]
    + [(name, np.int64) for name in ("tap_rows", "tap_columns", "dilation", "dilation_across")]
    + [("low", np.float32), ("high", np.float32)]
)
"""A step: addresses in bytes, what is counted in floats (planes, length) or in pixels (pitches, sides)."""

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)


# -- LLVM --------------------------------------------------------------------------------------------------------------


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _splat(builder: Any, scalar: Any) -> Any:
    nothing = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _place(builder: Any, base: Any, register: int) -> Any:
    at = builder.gep(base, [ir.Constant(I64, register * LANES)])
    return builder.bitcast(at, VECTOR.as_pointer())


def _load(builder: Any, base: Any, register: int) -> Any:
    loaded = builder.load(_place(builder, base, register))
    loaded.align = 4
    return loaded


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    name = f"llvm.fma.v{LANES}f32"
    function = builder.module.globals.get(name)
    function = function or ir.Function(builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), name)
    return builder.call(function, [a, b, c])


class _Tile:
    """The code of a tile of a fixed number of registers."""

    def __init__(self, builder: Any, args: Sequence[Any], registers: int) -> None:
        self.builder, self.registers = builder, registers
        self.x, self.offsets, self.values, self.first, self.last = args[:5]
        self.bias, self.y, self.residual, self.low, self.high = args[5:]

    def emit(self) -> None:
        builder = self.builder
        sums = self._started()
        chains = max(1, CHAINS // self.registers)
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        k = self.first
        if chains > 1:
            k, parts = self._loop(k, sums + [zero] * (self.registers * (chains - 1)), chains)
            sums = parts[: self.registers]
            _, sums = self._loop(k, sums, 1)
            for place, part in enumerate(parts[self.registers :]):
                at = place % self.registers
                sums[at] = builder.fadd(sums[at], part)
        else:
            _, sums = self._loop(k, sums, 1)
        low, high = _splat(builder, self.low), _splat(builder, self.high)
        for register, total in enumerate(sums):  # comparisons that keep NaN
            raised = builder.select(builder.fcmp_ordered(">", low, total), low, total)
            bounded = builder.select(builder.fcmp_ordered("<", high, raised), high, raised)
            builder.store(bounded, _place(builder, self.y, register)).align = 4

    def _started(self) -> list[Any]:
        """The bias, and the residual where there is one."""
        builder = self.builder
        bias = _splat(builder, self.bias)
        before = builder.block
        added, begun = (builder.function.append_basic_block(name) for name in ("added", "begun"))
        builder.cbranch(builder.icmp_unsigned("==", self.residual, ir.Constant(I64, 0)), begun, added)
        builder.position_at_end(added)
        base = _pointer(builder, self.residual, F32)
        sums = [builder.fadd(bias, _load(builder, base, register)) for register in range(self.registers)]
        builder.branch(begun)
        builder.position_at_end(begun)
        phis = [builder.phi(VECTOR) for _ in sums]
        for phi, total in zip(phis, sums, strict=True):
            phi.add_incoming(bias, before)
            phi.add_incoming(total, added)
        return phis

    def _loop(self, k: Any, sums: Sequence[Any], weights: int) -> tuple[Any, list[Any]]:
        """Kept weights from k on, so many at a time as there are; where it ended, and the sums."""
        builder = self.builder
        before = builder.block
        head, body, done = (builder.function.append_basic_block(name) for name in ("head", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        at = builder.phi(I64)
        at.add_incoming(k, before)
        phis = [builder.phi(VECTOR) for _ in sums]
        for phi, total in zip(phis, sums, strict=True):
            phi.add_incoming(total, before)
        following = builder.add(at, ir.Constant(I64, weights))
        builder.cbranch(builder.icmp_signed("<=", following, self.last), body, done)
        builder.position_at_end(body)
        news = []
        for chain in range(weights):
            place = [builder.add(at, ir.Constant(I64, chain))]
            weight = _splat(builder, builder.load(builder.gep(self.values, place)))
            offset = builder.sext(builder.load(builder.gep(self.offsets, place)), I64)
            source = builder.gep(self.x, [offset])
            for register in range(self.registers):
                total = phis[chain * self.registers + register]
                news.append(_fma(builder, weight, _load(builder, source, register), total))
        at.add_incoming(following, builder.block)
        for phi, total in zip(phis, news, strict=True):
            phi.add_incoming(total, builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return at, phis


@intrinsic
def _tile(
    context: Any, count: Any, x: Any, offsets: Any, values: Any, first: Any, last: Any, bias: Any, y: Any,
    residual: Any, low: Any, high: Any,
) -> Any:  # fmt: skip
    """y = bounded(bias + residual + sum over kept weights first..last of value x[offset ...]), `count` registers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, x, offsets, values, first, last, bias, y, residual, low, high = args
        kinds = ((x, F32), (offsets, I32), (values, F32))
        x, offsets, values = (_pointer(builder, address, kind) for address, kind in kinds)
        y = _pointer(builder, y, F32)
        end = builder.function.append_basic_block("end")
        switch = builder.switch(count, end)
        for registers in range(1, REGISTERS + 1):
            block = builder.function.append_basic_block(f"registers{registers}")
            switch.add_case(ir.Constant(I64, registers), block)
            builder.position_at_end(block)
            _Tile(builder, (x, offsets, values, first, last, bias, y, residual, low, high), registers).emit()
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    whole = types.int64
    arguments = (*[whole] * 6, types.float32, whole, whole, types.float32, types.float32)
    return types.void(*arguments), generate


@intrinsic
def _clear(context: Any, y: Any) -> Any:
    """Zeros in one register's place."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(ir.Constant(VECTOR, [0.0] * LANES), _pointer(builder, args[0], VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _evens(builder: Any, source: Any) -> Any:
    """Every second of two registers' floats."""
    base = _pointer(builder, source, F32)
    places = ir.Constant(ir.VectorType(I32, LANES), [2 * lane for lane in range(LANES)])
    return builder.shuffle_vector(_load(builder, base, 0), _load(builder, base, 1), places)


@intrinsic
def _copy_evens(context: Any, target: Any, source: Any) -> Any:
    """Every second float, as many as a register holds."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(_evens(builder, args[1]), _pointer(builder, args[0], VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _raise_to_evens(context: Any, target: Any, source: Any) -> Any:
    """The larger of a register's floats and every second one of two others; NaN is larger than all."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, base = _evens(builder, args[1]), _pointer(builder, args[0], F32)
        largest = _load(builder, base, 0)
        rises = builder.or_(builder.fcmp_ordered(">", value, largest), builder.fcmp_unordered("uno", value, value))
        builder.store(builder.select(rises, value, largest), _place(builder, base, 0)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _floats(context: Any, address: Any) -> Any:
    kind = types.CPointer(types.float32)
    return kind(types.int64), lambda context, builder, signature, args: _pointer(builder, args[0], F32)


@intrinsic
def _integers(context: Any, address: Any) -> Any:
    kind = types.CPointer(types.int32)
    return kind(types.int64), lambda context, builder, signature, args: _pointer(builder, args[0], I32)


@intrinsic
def _arrived(context: Any, address: Any, more: Any) -> Any:
    """How many have arrived at a barrier, once `more` are added."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        before = builder.atomic_rmw("add", _pointer(builder, args[0], I64), args[1], "seq_cst")
        return builder.add(before, args[1])

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _give_way(context: Any) -> Any:
    """Let another thread have the core."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if os.name == "posix":
            function = builder.module.globals.get("sched_yield")
            function = function or ir.Function(builder.module, ir.FunctionType(I32, []), "sched_yield")
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


# -- steps -------------------------------------------------------------------------------------------------------------


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _convolve(step: Any, part: int, parts: int) -> None:
    """All outputs of a tile before the next tile: what they read stays in the cache."""
    starts, bias = _integers(step.starts), _floats(step.bias)
    holes, hole_starts = _integers(step.holes), _integers(step.hole_starts)
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
            _tile(
                end - begin, x, step.offsets, step.values, np.int64(starts[o]), np.int64(starts[o + 1]), bias[o], y,
                residual, step.low, step.high,
            )  # fmt: skip
            y = step.y + o * step.plane * 4
            if step.lanes == 1:
                plane = _floats(y)
                for h in range(hole_starts[t], hole_starts[t + 1]):
                    plane[holes[h]] = 0.0
            else:
                for h in range(hole_starts[t], hole_starts[t + 1]):
                    _clear(y + holes[h] * 4)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _split(step: Any, part: int, parts: int) -> None:
    """Padded planes of every stride-th row and column: the pairs of channel and phase that a layer reads."""
    pairs, phases, lanes, stride = _integers(step.pairs), _integers(step.phases), step.lanes, step.across
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
                _copy(target, source + (at * step.source_pitch + right + begin * stride) * lanes * 4, count, stride, lanes)


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _copy(target: int, source: int, count: int, stride: int, lanes: int) -> None:
    """Every stride-th pixel of a row."""
    to, of = _floats(target), _floats(source)
    if lanes > 1:
        for column in range(count):
            for lane in range(LANES):
                to[column * LANES + lane] = of[column * stride * LANES + lane]
    elif stride == 2 and count >= LANES:
        for column in range(0, count - LANES, LANES):
            _copy_evens(target + column * 4, source + column * 8)
        _copy_evens(target + (count - LANES) * 4, source + (count - LANES) * 8)
    elif stride == 1:
        for column in range(count):
            to[column] = of[column]
    else:
        for column in range(count):
            to[column] = of[column * stride]


@numba.njit(nogil=True, error_model="numpy", cache=True)
def _raise(target: int, source: int, count: int, stride: int) -> None:
    """The larger of a run and every stride-th float of another; NaN is larger than all."""
    to, of = _floats(target), _floats(source)
    if stride == 2 and count >= LANES:
        for at in range(0, count - LANES, LANES):
            _raise_to_evens(target + at * 4, source + at * 8)
        _raise_to_evens(target + (count - LANES) * 4, source + (count - LANES) * 8)
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
            to = _floats(target)
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
        target = _floats(step.y + channel * step.plane * 4)
        for lane in range(step.lanes):
            total = np.float32(0.0)
            for row in range(step.height):
                at = channel * step.source_plane + row * step.source_pitch * step.lanes + lane
                source = _floats(step.x + at * 4)
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
            seen = _arrived(barrier, 1)
            turns = 0
            while seen < parts * (s - first + 1):
                turns += 1
                if turns % 1024 == 0:
                    _give_way()
                seen = _arrived(barrier, 0)


def _compiled() -> Any:
    dispatcher = numba.njit(nogil=True, error_model="numpy", cache=True)(_run)
    if not any(Path(dispatcher.stats.cache_path).glob("kernels._run-*.nbi")):
        logging.getLogger(__name__).warning("pathex compiles its kernels for this processor, once: some seconds")
    dispatcher.compile(_ARGUMENTS)
    return dispatcher


run = _compiled()
"""``run(steps, first, last, part, parts, barrier)``: steps of a table as one of several threads; those that are not
alone meet after each step at a counter, an int64 at the address ``barrier`` that is zero before."""


def zeros(floats: int) -> Any:
    """A float32 array that begins on a cache line, with room to read a tile beyond its end."""
    room = np.zeros(floats + REGISTERS * LANES + ALIGNMENT, np.float32)
    begin = -(room.ctypes.data // 4) % (ALIGNMENT // 4)
    return room[begin:]

"""Pieces of kernels in LLVM, which numba compiles for the processor at hand.

A tile of outputs stays in vector registers; for each kept weight one broadcast, and for each register one load and one
fused multiply-add.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
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

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(F32, LANES)


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
        builder, zero = self.builder, ir.Constant(VECTOR, [0.0] * LANES)
        chains = max(1, CHAINS // self.registers)
        k, parts = self.first, [zero] * (self.registers * chains)
        if chains > 1:
            k, parts = self._loop(k, parts, chains)
        _, sums = self._loop(k, parts[: self.registers], 1)
        for place, part in enumerate(parts[self.registers :]):
            sums[place % self.registers] = builder.fadd(sums[place % self.registers], part)
        sums = self._with_residual(sums)
        bias, low, high = (_splat(builder, scalar) for scalar in (self.bias, self.low, self.high))
        for register, part in enumerate(sums):  # comparisons that keep NaN
            total = builder.fadd(part, bias)
            raised = builder.select(builder.fcmp_ordered(">", low, total), low, total)
            bounded = builder.select(builder.fcmp_ordered("<", high, raised), high, raised)
            builder.store(bounded, _place(builder, self.y, register)).align = 4

    def _with_residual(self, sums: Sequence[Any]) -> list[Any]:
        """Sums of kept weights and the residual where there is one: added last, so that sums in blocks round less."""
        builder = self.builder
        before = builder.block
        added, done = (builder.function.append_basic_block(name) for name in ("added", "done"))
        builder.cbranch(builder.icmp_unsigned("==", self.residual, ir.Constant(I64, 0)), done, added)
        builder.position_at_end(added)
        base = _pointer(builder, self.residual, F32)
        totals = [builder.fadd(part, _load(builder, base, register)) for register, part in enumerate(sums)]
        builder.branch(done)
        builder.position_at_end(done)
        phis = [builder.phi(VECTOR) for _ in sums]
        for phi, part, total in zip(phis, sums, totals, strict=True):
            phi.add_incoming(part, before)
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


def _intrinsic(result: Any, *kinds: Any) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic from what it emits for values of these types; None stands for a call without a result."""

    def made(emit: Callable[..., Any]) -> Any:
        def typed(context: Any, *args: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = emit(builder, *args)
                return context.get_dummy_value() if result is types.void else value

            return result(*kinds), generate

        typed.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]  # by which numba passes arguments
        return intrinsic(typed)

    return made


@_intrinsic(types.void, *[types.int64] * 6, types.float32, types.int64, types.int64, types.float32, types.float32)
def tile(
    builder: Any, count: Any, x: Any, offsets: Any, values: Any, first: Any, last: Any, bias: Any, y: Any,
    residual: Any, low: Any, high: Any,
) -> None:  # fmt: skip
    """A tile of y = bounded(bias + residual + sum over kept weights first..last of value x[offset ...])."""
    kinds = ((x, F32), (offsets, I32), (values, F32), (y, F32))
    x, offsets, values, y = (_pointer(builder, address, kind) for address, kind in kinds)
    end = builder.function.append_basic_block("end")
    switch = builder.switch(count, end)
    for registers in range(1, REGISTERS + 1):
        block = builder.function.append_basic_block(f"registers{registers}")
        switch.add_case(ir.Constant(I64, registers), block)
        builder.position_at_end(block)
        _Tile(builder, (x, offsets, values, first, last, bias, y, residual, low, high), registers).emit()
        builder.branch(end)
    builder.position_at_end(end)


@_intrinsic(types.void, types.int64)
def clear(builder: Any, y: Any) -> None:
    """Zeros in one register's place."""
    builder.store(ir.Constant(VECTOR, [0.0] * LANES), _pointer(builder, y, VECTOR)).align = 4


def _evens(builder: Any, source: Any) -> Any:
    """Every second of two registers' floats."""
    base = _pointer(builder, source, F32)
    places = ir.Constant(ir.VectorType(I32, LANES), [2 * lane for lane in range(LANES)])
    return builder.shuffle_vector(_load(builder, base, 0), _load(builder, base, 1), places)


@_intrinsic(types.void, types.int64, types.int64)
def copy_evens(builder: Any, target: Any, source: Any) -> None:
    """Every second float, as many as a register holds."""
    builder.store(_evens(builder, source), _pointer(builder, target, VECTOR)).align = 4


@_intrinsic(types.void, types.int64, types.int64)
def raise_to_evens(builder: Any, target: Any, source: Any) -> None:
    """The larger of a register's floats and every second one of two others; NaN is larger than all."""
    value, base = _evens(builder, source), _pointer(builder, target, F32)
    largest = _load(builder, base, 0)
    rises = builder.or_(builder.fcmp_ordered(">", value, largest), builder.fcmp_unordered("uno", value, value))
    builder.store(builder.select(rises, value, largest), _place(builder, base, 0)).align = 4


@_intrinsic(types.CPointer(types.float32), types.int64)
def floats(builder: Any, address: Any) -> Any:
    """The float32 at an address in bytes."""
    return _pointer(builder, address, F32)


@_intrinsic(types.CPointer(types.int32), types.int64)
def integers(builder: Any, address: Any) -> Any:
    """The int32 at an address in bytes."""
    return _pointer(builder, address, I32)


@_intrinsic(types.int64, types.int64, types.int64)
def arrived(builder: Any, address: Any, more: Any) -> Any:
    """How many have arrived at a barrier, once ``more`` are added."""
    return builder.add(builder.atomic_rmw("add", _pointer(builder, address, I64), more, "seq_cst"), more)


@_intrinsic(types.void)
def give_way(builder: Any) -> None:
    """Let another thread have the core."""
    if os.name == "posix":
        function = builder.module.globals.get("sched_yield")
        builder.call(function or ir.Function(builder.module, ir.FunctionType(I32, []), "sched_yield"), [])

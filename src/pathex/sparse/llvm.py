"""Vector code in LLVM, which numba compiles for the processor at hand.

A tile of outputs stays in vector registers; for each kept weight one broadcast, and for each register one load and one
fused multiply-add. In training, and in batches, the images of a block lie in the lanes of a register.
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

MARK = 16  # bits of what marks lanes
I16, I32, I64 = ir.IntType(MARK), ir.IntType(32), ir.IntType(64)


class Code:
    """Vector code for numbers of one type.

    Args:
        builder: Where it is written.
        number: The type of numba.
    """

    def __init__(self, builder: Any, number: Any) -> None:
        self.builder = builder
        self.number = ir.DoubleType() if number == types.float64 else ir.FloatType()
        self.size = 8 if number == types.float64 else 4
        self.lanes = LANES * 4 // self.size
        self.vector = ir.VectorType(self.number, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.width = ir.Constant(I64, self.size * self.lanes)  # of a register
        self._suffix = f"v{self.lanes}f{8 * self.size}"

    def at(self, address: Any) -> Any:
        """The vector at an address in bytes."""
        return self.builder.inttoptr(address, self.vector.as_pointer())

    def load(self, pointer: Any, register: int = 0) -> Any:
        """The register so many places on."""
        loaded = self.builder.load(self._place(pointer, register))
        loaded.align = self.size
        return loaded

    def store(self, value: Any, pointer: Any, register: int = 0) -> None:
        """Write it so many places on."""
        self.builder.store(value, self._place(pointer, register)).align = self.size

    def load_bits(self, pointer: Any) -> Any:
        """For each lane a bit of an int16."""
        number = self.builder.load(self.builder.bitcast(pointer, I16.as_pointer()))
        bits = number if self.lanes == MARK else self.builder.trunc(number, ir.IntType(self.lanes))
        return self.builder.bitcast(bits, ir.VectorType(ir.IntType(1), self.lanes))

    def store_bits(self, lanes: Any, pointer: Any) -> None:
        """Write a bit for each lane as an int16."""
        bits = self.builder.bitcast(lanes, ir.IntType(self.lanes))
        number = bits if self.lanes == MARK else self.builder.zext(bits, I16)
        self.builder.store(number, self.builder.bitcast(pointer, I16.as_pointer()))

    def _place(self, pointer: Any, register: int) -> Any:
        return self.builder.gep(pointer, [ir.Constant(I64, register)])

    def splat(self, scalar: Any) -> Any:
        """A number in all lanes."""
        lanes = len(scalar.type) if isinstance(scalar.type, ir.VectorType) else self.lanes
        nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def first(self, count: Any) -> Any:
        """Which lanes are among the first ``count``."""
        numbers = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.splat(count))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """A b + c."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.builder.call(self._function(f"llvm.fma.{self._suffix}", kind), [a, b, c])

    def total(self, vector: Any) -> Any:
        """The sum of the lanes."""
        kind = ir.FunctionType(self.number, [self.number, self.vector])
        function = self._function(f"llvm.vector.reduce.fadd.{self._suffix}", kind)
        return self.builder.call(function, [ir.Constant(self.number, 0.0), vector], fastmath=("reassoc",))

    def _function(self, name: str, kind: Any) -> Any:
        return self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)

    def loop(
        self, first: Any, last: Any, step: int, carried: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
    ) -> tuple[Any, list[Any]]:
        """From ``first`` on while a step ends at ``last`` or before it: where it ended, and what was carried."""
        builder = self.builder
        before = builder.block
        head, inside, done = (builder.function.append_basic_block(name) for name in ("head", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        at = builder.phi(I64)
        at.add_incoming(first, before)
        phis = [builder.phi(value.type) for value in carried]
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        following = builder.add(at, ir.Constant(I64, step))
        builder.cbranch(builder.icmp_signed("<=", following, last), inside, done)
        builder.position_at_end(inside)
        news = body(at, list(phis))
        at.add_incoming(following, builder.block)
        for phi, value in zip(phis, news, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return at, list(phis)

    def plane(
        self, rows: Any, count: Any, steps: Sequence[tuple[Any, Any, Any]], carried: Sequence[Any], body: Any
    ) -> list[Any]:
        """Over the pixels of rows; ``body`` gets pointers, each so many bytes from row to row and pixel to pixel."""
        builder, nothing, number = self.builder, ir.Constant(I64, 0), len(steps)

        def pixel(_: Any, values: list[Any]) -> list[Any]:
            news = body([self.at(address) for address in values[:number]], values[number:])
            return [*(builder.add(a, step[2]) for a, step in zip(values[:number], steps, strict=True)), *news]

        def row(_: Any, values: list[Any]) -> list[Any]:
            _, found = self.loop(nothing, count, 1, values, pixel)
            return [*(builder.add(a, step[1]) for a, step in zip(values[:number], steps, strict=True)), *found[number:]]

        _, found = self.loop(nothing, rows, 1, [*(step[0] for step in steps), *carried], row)
        return found[number:]

    def sums(self, start: Any, tile: Any, registers: int, unit: int) -> list[Any]:
        """``start`` + the sums over kept weights of a tile: value x[offset], in so many bytes."""
        builder, (x, offsets, values, first, last) = self.builder, tile
        offsets, values = (
            builder.inttoptr(address, kind.as_pointer()) for address, kind in ((offsets, I32), (values, self.number))
        )

        def weights(at: Any, sums: list[Any], chains: int) -> list[Any]:
            news = []
            for chain in range(chains):
                place = [builder.add(at, ir.Constant(I64, chain))]
                weight = self.splat(builder.load(builder.gep(values, place)))
                offset = builder.sext(builder.load(builder.gep(offsets, place)), I64)
                source = self.at(builder.add(x, builder.mul(offset, ir.Constant(I64, unit))))
                parts = enumerate(sums[chain * registers : (chain + 1) * registers])
                news += [self.fma(weight, self.load(source, register), part) for register, part in parts]
            return news

        chains = max(1, CHAINS // registers)
        at, sums = first, [start] * registers + [self.zero] * (registers * (chains - 1))
        if chains > 1:
            at, sums = self.loop(at, last, chains, sums, lambda at, sums: weights(at, sums, chains))
        rest, sums = sums[registers:], sums[:registers]
        _, sums = self.loop(at, last, 1, sums, lambda at, sums: weights(at, sums, 1))
        for place, part in enumerate(rest):
            sums[place % registers] = builder.fadd(sums[place % registers], part)
        return sums

    def switch(self, count: Any, most: int, emit: Callable[[int], None]) -> None:
        """The code for this number of registers, from 1 to ``most``."""
        builder = self.builder
        end = builder.function.append_basic_block("end")
        switch = builder.switch(count, end)
        for registers in range(1, most + 1):
            block = builder.function.append_basic_block(f"registers{registers}")
            switch.add_case(ir.Constant(I64, registers), block)
            builder.position_at_end(block)
            emit(registers)
            builder.branch(end)
        builder.position_at_end(end)

    def either(self, flags: Sequence[Any], emit: Callable[..., None]) -> None:
        """The code for which of some integers are not zero."""
        builder, number = self.builder, ir.Constant(I64, 1)
        for place, flag in enumerate(flags):
            is_set = builder.zext(builder.icmp_signed("!=", flag, ir.Constant(I64, 0)), I64)
            number = builder.add(number, builder.shl(is_set, ir.Constant(I64, place)))
        places = range(len(flags))
        self.switch(number, 1 << len(flags), lambda case: emit(*(bool(case - 1 >> place & 1) for place in places)))


def piece(result: str, scalars: int) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic from what it emits: numbers of the type of the first one, then integers; gives none or a number."""

    def made(emit: Callable[..., Any]) -> Any:
        integers = len(inspect.signature(emit).parameters) - 1 - scalars

        def typed(context: Any, *args: Any) -> Any:
            number = args[0] if args and args[0] == types.float64 else types.float32
            gives = number if result == "number" else types.void

            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = emit(Code(builder, number), *args)
                return context.get_dummy_value() if gives is types.void else value

            return gives(*[number] * scalars, *[types.int64] * integers), generate

        typed.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]  # by which numba passes arguments
        return intrinsic(typed)

    return made


@intrinsic
def floats(context: Any, address: Any) -> Any:
    """The float32 at an address in bytes."""
    return _pointer(types.float32, ir.FloatType())


@intrinsic
def integers(context: Any, address: Any) -> Any:
    """The int32 at an address in bytes."""
    return _pointer(types.int32, I32)


def _pointer(kind: Any, of: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], of.as_pointer())

    return types.CPointer(kind)(types.int64), generate


@intrinsic
def rounded(context: Any, like: Any, value: Any) -> Any:
    """A float64 as a number of this type."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[1], types.float64, like)

    return like(like, types.float64), generate


@intrinsic
def arrived(context: Any, address: Any, more: Any) -> Any:
    """How many have arrived at a barrier, once ``more`` are added."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], I64.as_pointer())
        return builder.add(builder.atomic_rmw("add", counter, args[1], "seq_cst"), args[1])

    return types.int64(types.int64, types.int64), generate


@piece("none", 0)
def give_way(code: Any) -> None:
    """Let another thread have the core."""
    if os.name == "posix":
        module = code.builder.module
        function = module.globals.get("sched_yield")
        code.builder.call(function or ir.Function(module, ir.FunctionType(I32, []), "sched_yield"), [])

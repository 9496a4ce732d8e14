"""Pieces of kernels for training in LLVM: rows and tiles of pixels, the images of a block in the lanes of a register.

Each is compiled for float32 and for float64: ``like``, a number, says which.
"""

import inspect
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pathex.sparse.llvm import LANES, REGISTERS

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
TILE = min(12, 2 * REGISTERS // 3)  # registers of a tile: few enough for what it reads to stay in the first cache
CHAINS = 8  # sums that the units for fused multiply-adds work on at once: four cycles, two units


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
        loaded = self.builder.load(self._place(pointer, register))
        loaded.align = self.size
        return loaded

    def store(self, value: Any, pointer: Any, register: int = 0) -> None:
        self.builder.store(value, self._place(pointer, register)).align = self.size

    def _place(self, pointer: Any, register: int) -> Any:
        return self.builder.gep(pointer, [ir.Constant(I64, register)])

    def splat(self, scalar: Any) -> Any:
        lanes = len(scalar.type) if isinstance(scalar.type, ir.VectorType) else self.lanes
        nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
        first = self.builder.insert_element(nothing, scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def first(self, count: Any) -> Any:
        """Which lanes are among the first ``count``."""
        numbers = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.splat(count))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
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
        """Over the pixels of rows: ``body`` gets pointers, each so many bytes from row to row and pixel to pixel.

        It gives what it carries to the next pixel.
        """
        builder, nothing, number = self.builder, ir.Constant(I64, 0), len(steps)

        def pixel(_: Any, values: list[Any]) -> list[Any]:
            news = body([self.at(address) for address in values[:number]], values[number:])
            return [*(builder.add(a, step[2]) for a, step in zip(values[:number], steps, strict=True)), *news]

        def row(_: Any, values: list[Any]) -> list[Any]:
            _, found = self.loop(nothing, count, 1, values, pixel)
            return [*(builder.add(a, step[1]) for a, step in zip(values[:number], steps, strict=True)), *found[number:]]

        _, found = self.loop(nothing, rows, 1, [*(step[0] for step in steps), *carried], row)
        return found[number:]

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


def _piece(result: str, scalars: int) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic from what it emits: numbers of the type of the first one, then integers; gives none or a number."""

    def made(emit: Callable[..., Any]) -> Any:
        integers = len(inspect.signature(emit).parameters) - 1 - scalars

        def typed(context: Any, *args: Any) -> Any:
            number = args[0] if args[0] in (types.float32, types.float64) else types.float32
            gives = number if result == "number" else types.void

            def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = emit(Code(builder, number), *args)
                return context.get_dummy_value() if gives is types.void else value

            return gives(*[number] * scalars, *[types.int64] * integers), generate

        typed.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]  # by which numba passes arguments
        return intrinsic(typed)

    return made


@_piece("none", 1)
def clear(code: Any, like: Any, count: Any, target: Any) -> None:
    """Zeros in a run of registers."""
    steps = [(target, code.width, code.width)]
    code.plane(ir.Constant(I64, 1), count, steps, [], lambda at, _: code.store(code.zero, at[0]) or [])


def _reader(is_sum: bool, is_copied: bool) -> Any:
    """max(low, scale x + shift + added), zero in lanes that are not valid; perhaps written to a second place too."""

    @_piece("none", 3)
    def read(
        code: Any, scale: Any, shift: Any, low: Any, valid: Any, rows: Any, count: Any, across: Any, target: Any,
        row: Any, x: Any, x_row: Any, added: Any, added_row: Any, copy: Any, copy_row: Any,
    ) -> None:  # fmt: skip
        builder, lanes, pixel = code.builder, code.first(valid), code.builder.mul(across, code.width)
        scale, shift, low = (code.splat(each) for each in (scale, shift, low))

        def body(at: Any, _: Any) -> list[Any]:
            value = code.fma(scale, code.load(at[1]), shift)
            if is_sum:
                value = builder.fadd(value, code.load(at[2]))
            value = builder.select(builder.fcmp_ordered("<", value, low), low, value)  # keeps NaN
            value = builder.select(lanes, value, code.zero)
            for place in (0, -1)[: 1 + is_copied]:
                code.store(value, at[place])
            return []

        steps = [(target, row, code.width), (x, x_row, pixel)]
        steps += [*[(added, added_row, pixel)][:is_sum], *[(copy, copy_row, pixel)][:is_copied]]
        code.plane(rows, count, steps, [], body)

    return read


normalise, normalise_twice, join, join_twice = (_reader(*flags) for flags in product((False, True), repeat=2))


@_piece("number", 1)
def store(
    code: Any, like: Any, valid: Any, rows: Any, count: Any, target: Any, row: Any, source: Any, source_row: Any
) -> Any:
    """Registers of rows into those of others; gives the sum of valid lanes."""
    builder, lanes = code.builder, code.first(valid)

    def pixel(at: Any, sums: Any) -> list[Any]:
        value = builder.select(lanes, code.load(at[1]), code.zero)
        code.store(value, at[0])
        return [builder.fadd(sums[0], value)]

    steps = [(target, row, code.width), (source, source_row, code.width)]
    return code.total(code.plane(rows, count, steps, [code.zero], pixel)[0])


@_piece("number", 1)
def squares(code: Any, mean: Any, valid: Any, rows: Any, count: Any, source: Any, row: Any) -> Any:
    """The sum of squared distances of valid lanes from a mean."""
    builder, lanes, mean = code.builder, code.first(valid), code.splat(mean)

    def pixel(at: Any, sums: Any) -> list[Any]:
        away = builder.select(lanes, builder.fsub(code.load(at[0]), mean), code.zero)
        return [code.fma(away, away, sums[0])]

    return code.total(code.plane(rows, count, [(source, row, code.width)], [code.zero], pixel)[0])


@_piece("number", 3)
def whole_gradient(
    code: Any, level: Any, slope: Any, mean: Any, valid: Any, rows: Any, count: Any, target: Any, row: Any, given: Any,
    given_row: Any, y: Any, y_row: Any,
) -> Any:  # fmt: skip
    """Registers of g + level + slope (y - mean), zero in lanes that are not valid; gives their sum."""
    builder, lanes = code.builder, code.first(valid)
    level, slope, mean = (code.splat(each) for each in (level, slope, mean))

    def pixel(at: Any, sums: Any) -> list[Any]:
        value = code.fma(slope, builder.fsub(code.load(at[2]), mean), builder.fadd(code.load(at[1]), level))
        value = builder.select(lanes, value, code.zero)
        code.store(value, at[0])
        return [builder.fadd(sums[0], value)]

    steps = [(target, row, code.width), (given, given_row, code.width), (y, y_row, code.width)]
    return code.total(code.plane(rows, count, steps, [code.zero], pixel)[0])


@_piece("none", 1)
def fill(code: Any, value: Any, count: Any, target: Any) -> None:
    """A number in all lanes of a run of registers."""
    value = code.splat(value)
    steps = [(target, code.width, code.width)]
    code.plane(ir.Constant(I64, 1), count, steps, [], lambda at, _: code.store(value, at[0]) or [])


@_piece("none", 1)
def clear_columns(code: Any, like: Any, rows: Any, count: Any, target: Any, row: Any) -> None:
    """Zeros in a run of registers of each row."""
    steps = [(target, row, code.width)]
    code.plane(rows, count, steps, [], lambda at, _: code.store(code.zero, at[0]) or [])


def _writer(is_sum: bool, has_more: bool) -> Any:
    """The gradient g, given and perhaps more, of y = max(low, scale x + shift + added): to x, and to what is added.

    Adds g and g (x - mean), where y is not bounded, to two registers of sums.
    """

    @_piece("none", 4)
    def write(
        code: Any, scale: Any, shift: Any, low: Any, mean: Any, valid: Any, rows: Any, count: Any, across: Any,
        target: Any, row: Any, given: Any, given_row: Any, x: Any, x_row: Any, passed: Any, passed_row: Any, y: Any,
        y_row: Any, more: Any, more_row: Any, sums: Any,
    ) -> None:  # fmt: skip
        builder, lanes, pixel = code.builder, code.first(valid), code.builder.mul(across, code.width)
        factor, shift, low, mean = (code.splat(each) for each in (scale, shift, low, mean))

        def body(at: Any, sums: Any) -> list[Any]:
            x, gradient = code.load(at[2]), code.load(at[1])
            y = code.load(at[4]) if is_sum else code.fma(factor, x, shift)
            if has_more:
                gradient = builder.fadd(gradient, code.load(at[-1]))
            passes = builder.and_(lanes, builder.fcmp_unordered(">", y, low))
            value = builder.select(passes, gradient, code.zero)
            code.store(builder.fmul(factor, value), at[0])
            if is_sum:
                code.store(value, at[3])
            away = builder.select(lanes, builder.fsub(x, mean), code.zero)
            return [builder.fadd(sums[0], value), code.fma(value, away, sums[1])]

        steps = [(target, row, pixel), (given, given_row, code.width), (x, x_row, pixel)]
        steps += [*[(passed, passed_row, pixel), (y, y_row, pixel)][: 2 * is_sum], *[(more, more_row, pixel)][:has_more]]
        totals, kept = code.plane(rows, count, steps, [code.zero, code.zero], body), code.at(sums)
        for register, total in enumerate(totals):
            code.store(builder.fadd(code.load(kept, register), total), kept, register)

    return write


pass_back, pass_back_more, split_back, split_back_more = (_writer(*flags) for flags in product((False, True), repeat=2))


@_piece("none", 1)
def tile(
    code: Any, bias: Any, count: Any, x: Any, offsets: Any, values: Any, first: Any, last: Any, y: Any
) -> None:
    """A tile of y = bias + sum over kept weights first..last of value x[offset, in bytes]."""
    builder = code.builder
    offsets = builder.inttoptr(offsets, I32.as_pointer())
    values = builder.inttoptr(values, code.number.as_pointer())
    target = code.at(y)

    def emit(registers: int) -> None:
        def weights(at: Any, sums: list[Any], chains: int) -> list[Any]:
            news = []
            for chain in range(chains):
                place = [builder.add(at, ir.Constant(I64, chain))]
                weight = code.splat(builder.load(builder.gep(values, place)))
                offset = builder.sext(builder.load(builder.gep(offsets, place)), I64)
                source = code.at(builder.add(x, offset))
                for register in range(registers):
                    total = sums[chain * registers + register]
                    news.append(code.fma(weight, code.load(source, register), total))
            return news

        chains = max(1, CHAINS // registers)
        at, sums = first, [code.splat(bias)] * registers + [code.zero] * (registers * (chains - 1))
        if chains > 1:
            at, sums = code.loop(at, last, chains, sums, lambda at, sums: weights(at, sums, chains))
        rest, sums = sums[registers:], sums[:registers]
        _, sums = code.loop(at, last, 1, sums, lambda at, sums: weights(at, sums, 1))
        for place, part in enumerate(rest):
            sums[place % registers] = builder.fadd(sums[place % registers], part)
        for register, total in enumerate(sums):
            code.store(total, target, register)

    code.switch(count, TILE, emit)


@_piece("none", 1)
def products(
    code: Any, like: Any, count: Any, x: Any, offsets: Any, gradients: Any, first: Any, last: Any, y: Any
) -> None:
    """Adds to the gradient of each kept weight first..last the sum over a tile of y x[offset, in bytes]."""
    builder = code.builder
    offsets = builder.inttoptr(offsets, I32.as_pointer())
    gradients = builder.inttoptr(gradients, code.number.as_pointer())
    source = code.at(y)

    def emit(registers: int) -> None:
        tile = [code.load(source, register) for register in range(registers)]

        def weight(at: Any, _: list[Any]) -> list[Any]:
            offset = builder.sext(builder.load(builder.gep(offsets, [at])), I64)
            place, slot = code.at(builder.add(x, offset)), builder.gep(gradients, [at])
            parts = [code.zero] * min(4, registers)
            for register, value in enumerate(tile):
                part = register % len(parts)
                parts[part] = code.fma(value, code.load(place, register), parts[part])
            while len(parts) > 1:
                parts = [builder.fadd(*parts[:2]), *parts[2:]] if len(parts) % 2 else [
                    builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)
                ]
            builder.store(builder.fadd(builder.load(slot), code.total(parts[0])), slot)
            return []

        code.loop(first, last, 1, [], weight)

    code.switch(count, TILE, emit)



@intrinsic
def numbers(context: Any, like: Any, address: Any) -> Any:
    """Pointer to numbers at an address in bytes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], Code(builder, like).number.as_pointer())

    return types.CPointer(like)(like, types.int64), generate


@intrinsic
def rounded(context: Any, like: Any, value: Any) -> Any:
    """A float64 as a number of this type."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[1], types.float64, like)

    return like(like, types.float64), generate


@_piece("none", 1)
def raise_row(code: Any, like: Any, count: Any, across: Any, target: Any, source: Any) -> None:
    """The larger of registers of a row and of every so manyth one of another; NaN is larger than all."""
    builder = code.builder

    def body(at: Any, _: Any) -> list[Any]:
        value, largest = code.load(at[1]), code.load(at[0])
        rises = builder.or_(builder.fcmp_ordered(">", value, largest), builder.fcmp_unordered("uno", value, value))
        code.store(builder.select(rises, value, largest), at[0])
        return []

    nothing = ir.Constant(I64, 0)
    steps = [(target, nothing, code.width), (source, nothing, builder.mul(across, code.width))]
    code.plane(ir.Constant(I64, 1), count, steps, [], body)


@_piece("none", 1)
def route_row(code: Any, like: Any, count: Any, across: Any, given: Any, y: Any, source: Any, target: Any) -> None:
    """Adds a gradient to where a maximum came from, and takes it away from what is given."""
    builder, nothing, pixel = code.builder, ir.Constant(I64, 0), code.builder.mul(across, code.width)

    def body(at: Any, _: Any) -> list[Any]:
        gradient, same = code.load(at[0]), builder.fcmp_unordered("==", code.load(at[1]), code.load(at[2]))
        code.store(builder.fadd(code.load(at[3]), builder.select(same, gradient, code.zero)), at[3])
        code.store(builder.select(same, code.zero, gradient), at[0])
        return []

    steps = [(given, nothing, code.width), (y, nothing, code.width), (source, nothing, pixel), (target, nothing, pixel)]
    code.plane(ir.Constant(I64, 1), count, steps, [], body)

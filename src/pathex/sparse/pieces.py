"""Pieces of kernels: planes and tiles of pixels, those of training for float32 and float64.

``like``, or the first number, says for which; addresses and distances are in bytes, counts in registers.
"""

from typing import Any

from llvmlite import ir

from pathex.sparse.llvm import I32, I64, MARK, REGISTERS, piece

PRODUCTS = 2 * REGISTERS // 3  # registers of a tile whose products are summed: the others hold the sums


@piece("none", 1)
def fill(code: Any, value: Any, rows: Any, count: Any, target: Any, row: Any) -> None:
    """A number in all lanes of a run of registers of each row."""
    value, steps = code.splat(value), [(target, row, code.width)]
    code.plane(rows, count, steps, [], lambda at, _: code.store(value, at[0]) or [])


@piece("none", 3)
def read(
    code: Any, scale: Any, shift: Any, low: Any, is_sum: Any, is_copied: Any, is_gated: Any, is_marked: Any,
    valid: Any, rows: Any, count: Any, across: Any, target: Any, row: Any, x: Any, x_row: Any, added: Any,
    added_row: Any, copy: Any, copy_row: Any, gate: Any, gate_row: Any, marks: Any, marks_row: Any,
) -> None:  # fmt: skip
    """max(low, scale x + shift + added), zero in lanes that are not valid or that a gate has no bit for.

    Perhaps it is written to a second place too, and where it is positive is marked by bits.
    """
    builder, lanes, pixel = code.builder, code.first(valid), code.builder.mul(across, code.width)
    bits = builder.mul(across, ir.Constant(I64, MARK // 8))
    scale, shift, low = (code.splat(each) for each in (scale, shift, low))

    def emit(is_sum: bool, is_copied: bool, is_gated: bool, is_marked: bool) -> None:
        places = (2, 2 + is_sum, 2 + is_sum + is_copied, -1)  # added, copy, gate, marks

        def body(at: Any, _: Any) -> list[Any]:
            value, passes = code.fma(scale, code.load(at[1]), shift), lanes
            if is_sum:
                value = builder.fadd(value, code.load(at[places[0]]))
            value = builder.select(builder.fcmp_ordered("<", value, low), low, value)  # keeps NaN
            if is_gated:
                passes = builder.and_(lanes, code.load_bits(at[places[2]]))
            value = builder.select(passes, value, code.zero)
            code.store(value, at[0])
            if is_copied:
                code.store(value, at[places[1]])
            if is_marked:
                code.store_bits(builder.fcmp_ordered(">", value, code.zero), at[places[3]])
            return []

        steps = [(target, row, code.width), (x, x_row, pixel), *[(added, added_row, pixel)][:is_sum]]
        steps += [*[(copy, copy_row, pixel)][:is_copied], *[(gate, gate_row, bits)][:is_gated]]
        code.plane(rows, count, [*steps, *[(marks, marks_row, bits)][:is_marked]], [], body)

    code.either((is_sum, is_copied, is_gated, is_marked), emit)


@piece("number", 1)
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


@piece("number", 1)
def squares(code: Any, mean: Any, valid: Any, rows: Any, count: Any, source: Any, row: Any) -> Any:
    """The sum of squared distances of valid lanes from a mean."""
    builder, lanes, mean = code.builder, code.first(valid), code.splat(mean)

    def pixel(at: Any, sums: Any) -> list[Any]:
        away = builder.select(lanes, builder.fsub(code.load(at[0]), mean), code.zero)
        return [code.fma(away, away, sums[0])]

    return code.total(code.plane(rows, count, [(source, row, code.width)], [code.zero], pixel)[0])


@piece("number", 3)
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


@piece("none", 4)
def pass_back(
    code: Any, scale: Any, shift: Any, low: Any, mean: Any, is_sum: Any, has_more: Any, is_gated: Any, valid: Any,
    rows: Any, count: Any, across: Any, target: Any, row: Any, given: Any, given_row: Any, x: Any, x_row: Any,
    passed: Any, passed_row: Any, y: Any, y_row: Any, more: Any, more_row: Any, gate: Any, gate_row: Any, sums: Any,
) -> None:  # fmt: skip
    """The gradient, perhaps with more, of what `read` gives, y, to x and what is added; its sums."""
    builder, lanes, pixel = code.builder, code.first(valid), code.builder.mul(across, code.width)
    bits = builder.mul(across, ir.Constant(I64, MARK // 8))
    factor, shift, low, mean = (code.splat(each) for each in (scale, shift, low, mean))

    def emit(is_sum: bool, has_more: bool, is_gated: bool) -> None:
        def body(at: Any, sums: Any) -> list[Any]:
            x, gradient = code.load(at[2]), code.load(at[1])
            if has_more:
                gradient = builder.fadd(gradient, code.load(at[3 + 2 * is_sum]))
            if is_gated:
                passes = code.load_bits(at[-1])
            else:
                passes = builder.fcmp_unordered(">", code.load(at[4]) if is_sum else code.fma(factor, x, shift), low)
            passes = builder.and_(lanes, passes)
            value = builder.select(passes, gradient, code.zero)
            code.store(builder.fmul(factor, value), at[0])
            if is_sum:
                code.store(value, at[3])
            away = builder.select(lanes, builder.fsub(x, mean), code.zero)
            return [builder.fadd(sums[0], value), code.fma(value, away, sums[1])]

        steps = [(target, row, pixel), (given, given_row, code.width), (x, x_row, pixel)]
        steps += [(passed, passed_row, pixel), (y, y_row, pixel)][: 2 * is_sum]
        steps += [*[(more, more_row, pixel)][:has_more], *[(gate, gate_row, bits)][:is_gated]]
        totals, kept = code.plane(rows, count, steps, [code.zero, code.zero], body), code.at(sums)
        for register, total in enumerate(totals):
            code.store(builder.fadd(code.load(kept, register), total), kept, register)

    code.either((is_sum, has_more, is_gated), emit)


@piece("none", 1)
def tile(code: Any, bias: Any, count: Any, x: Any, offsets: Any, values: Any, first: Any, last: Any, y: Any) -> None:
    """A tile of y = bias + sum over kept weights first..last of value x[offset, in bytes]."""
    start, given, target = code.splat(bias), (x, offsets, values, first, last), code.at(y)

    def emit(registers: int) -> None:
        for register, total in enumerate(code.sums(start, given, registers, 1)):
            code.store(total, target, register)

    code.switch(count, REGISTERS, emit)


@piece("none", 3)
def bounded_tile(
    code: Any, bias: Any, low: Any, high: Any, count: Any, x: Any, offsets: Any, values: Any, first: Any, last: Any,
    y: Any, residual: Any,
) -> None:  # fmt: skip
    """A tile of y = bounded(bias + residual + sum over kept weights first..last of value x[offset, in floats])."""
    builder, given, target = code.builder, (x, offsets, values, first, last), code.at(y)
    bias, low, high = (code.splat(each) for each in (bias, low, high))

    def emit(registers: int) -> None:
        sums = _with_residual(code, code.sums(code.zero, given, registers, code.size), residual)
        for register, part in enumerate(sums):  # comparisons that keep NaN
            total = builder.fadd(part, bias)
            raised = builder.select(builder.fcmp_ordered(">", low, total), low, total)
            bounded = builder.select(builder.fcmp_ordered("<", high, raised), high, raised)
            code.store(bounded, target, register)

    code.switch(count, REGISTERS, emit)


def _with_residual(code: Any, sums: list[Any], residual: Any) -> list[Any]:
    """Sums of kept weights and the residual where there is one: added last, so that sums in blocks round less."""
    builder = code.builder
    before = builder.block
    added, done = (builder.function.append_basic_block(name) for name in ("added", "done"))
    builder.cbranch(builder.icmp_unsigned("==", residual, ir.Constant(I64, 0)), done, added)
    builder.position_at_end(added)
    totals = [builder.fadd(part, code.load(code.at(residual), register)) for register, part in enumerate(sums)]
    builder.branch(done)
    builder.position_at_end(done)
    phis = [builder.phi(code.vector) for _ in sums]
    for phi, part, total in zip(phis, sums, totals, strict=True):
        phi.add_incoming(part, before)
        phi.add_incoming(total, added)
    return phis


@piece("none", 0)
def clear(code: Any, y: Any) -> None:
    """Zeros in one register's place."""
    code.store(code.zero, code.at(y))


@piece("none", 0)
def copy_evens(code: Any, target: Any, source: Any) -> None:
    """Every second float, as many as a register holds."""
    code.store(_evens(code, source), code.at(target))


@piece("none", 0)
def raise_to_evens(code: Any, target: Any, source: Any) -> None:
    """The larger of a register's floats and every second one of two others; NaN is larger than all."""
    code.store(_larger(code, _evens(code, source), code.load(code.at(target))), code.at(target))


def _evens(code: Any, source: Any) -> Any:
    """Every second of two registers' floats."""
    places = ir.Constant(ir.VectorType(I32, code.lanes), [2 * lane for lane in range(code.lanes)])
    return code.builder.shuffle_vector(code.load(code.at(source)), code.load(code.at(source), 1), places)


def _larger(code: Any, value: Any, largest: Any) -> Any:
    builder = code.builder
    rises = builder.or_(builder.fcmp_ordered(">", value, largest), builder.fcmp_unordered("uno", value, value))
    return builder.select(rises, value, largest)


@piece("none", 1)
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
                parts = (
                    [builder.fadd(*parts[:2]), *parts[2:]]
                    if len(parts) % 2
                    else [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
                )
            builder.store(builder.fadd(builder.load(slot), code.total(parts[0])), slot)
            return []

        code.loop(first, last, 1, [], weight)

    code.switch(count, PRODUCTS, emit)


@piece("none", 1)
def raise_row(code: Any, like: Any, count: Any, across: Any, target: Any, source: Any) -> None:
    """The larger of registers of a row and of every so manyth one of another; NaN is larger than all."""

    def body(at: Any, _: Any) -> list[Any]:
        code.store(_larger(code, code.load(at[1]), code.load(at[0])), at[0])
        return []

    nothing = ir.Constant(I64, 0)
    steps = [(target, nothing, code.width), (source, nothing, code.builder.mul(across, code.width))]
    code.plane(ir.Constant(I64, 1), count, steps, [], body)


@piece("none", 1)
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

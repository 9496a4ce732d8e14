"""Products and quotients of tensors: linear in each factor.

Where one factor depends on the input, the others are coefficients. Where several do (gates, attention, products of two
branches), the product is read by its local Jacobian, squared in squared networks: ``out = A^2 b + B^2 a`` with the
recorded factors A and B, so that a path goes through each of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pathex.paths._reading import is_in_place
from pathex.paths._readings import RECORD, REPLAY, Factors, Record, Replay

__all__ = ["MATRIX_PRODUCTS", "PRODUCTS", "QUOTIENTS", "multilinear", "multilinear_replay"]

PRODUCTS = ("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__")
QUOTIENTS = ("div", "div_", "divide", "divide_", "true_divide", "true_divide_", "__truediv__", "__itruediv__")
MATRIX_PRODUCTS = ("matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "dot", "inner", "outer", "ger", "vdot")

Call = Callable[[Sequence[Any]], Tensor]


def multilinear(reading: Record, operands: Sequence[Any], call: Call) -> Tensor:
    """Record a function that is linear in each of its operands.

    Args:
        reading: The recorded pass.
        operands: Tensors or numbers.
        call: The function of the operands.

    Returns:
        Its result.
    """
    carried = [operand for operand in operands if reading.carries(operand)]
    if len(carried) > 1:
        # Copies: an in-place product, or one later on, may write into a factor.
        reading.site(Factors(tuple(operand.detach().clone() for operand in carried)))
    return call(operands)


def multilinear_replay(reading: Replay, func: Callable[..., Any], operands: Sequence[Any], call: Call) -> Tensor:
    """Replay a function that is linear in each of its operands.

    Args:
        reading: The replay.
        func: The torch function, for error messages.
        operands: What arrives in each place.
        call: The function of the operands, not in place.

    Returns:
        The sum over the operands that carry paths, of the function with the coefficients in all other places.
    """
    places = [place for place, operand in enumerate(operands) if reading.carries(operand)]
    factors = [operand if place in places else reading.coefficient(operand) for place, operand in enumerate(operands)]
    if len(places) == 1:
        return call(factors)
    if reading.sites is None:
        reading.open_per_sample(func)
        recorded = [torch.ones_like(operands[place]) for place in places]
    else:
        site: Factors = reading.next_site(Factors, operands[places[0]].shape, func)
        recorded = [reading.slope(tensor).to(operands[places[0]].dtype) for tensor in site.operands]
    for place, tensor in zip(places, recorded, strict=True):
        factors[place] = tensor
    return reading.joined([call([*factors[:place], operands[place], *factors[place + 1 :]]) for place in places])


# -- elementwise -------------------------------------------------------------------------------------------------------


def _refuse_constant_target(reading: Record | Replay, func: Callable[..., Any], input: Any) -> None:
    if is_in_place(func) and not reading.carries(input):
        raise reading.unsupported(func.__name__, "it multiplies into a constant")


@RECORD.add(*PRODUCTS)
def _product(reading: Record, func: Callable[..., Any], input: Any, other: Any) -> Any:
    _refuse_constant_target(reading, func, input)
    if input is other:
        return reading.inside(torch.square_ if is_in_place(func) else torch.square, input)
    return multilinear(reading, (input, other), lambda factors: func(*factors))


@REPLAY.add(*PRODUCTS)
def _product_linear(reading: Replay, func: Callable[..., Any], input: Any, other: Any) -> Any:
    _refuse_constant_target(reading, func, input)
    if input is other:
        return reading.inside(torch.square_ if is_in_place(func) else torch.square, input)
    result = multilinear_replay(reading, func, (input, other), lambda factors: torch.mul(*factors))
    return input.copy_(result) if is_in_place(func) else result


def _refuse_rounding(reading: Record | Replay, func: Callable[..., Any], rounding_mode: str | None) -> None:
    if rounding_mode is not None:
        raise reading.unsupported(func.__name__, "it is not linear in what depends on the input")


@RECORD.add(*QUOTIENTS)
def _quotient(
    reading: Record, func: Callable[..., Any], input: Any, other: Any, *, rounding_mode: str | None = None
) -> Any:
    _refuse_rounding(reading, func, rounding_mode)
    if not reading.carries(other):
        return func(input, other)
    return _by_reciprocal(reading, func, input, other)


@REPLAY.add(*QUOTIENTS)
def _quotient_linear(
    reading: Replay, func: Callable[..., Any], input: Any, other: Any, *, rounding_mode: str | None = None
) -> Any:
    _refuse_rounding(reading, func, rounding_mode)
    if not reading.carries(other):
        return func(input, reading.coefficient(other))
    return _by_reciprocal(reading, func, input, other)


def _by_reciprocal(reading: Record | Replay, func: Callable[..., Any], input: Any, other: Tensor) -> Any:
    _refuse_constant_target(reading, func, input)
    product = reading.inside(lambda: input * torch.reciprocal(other))
    return input.copy_(product) if is_in_place(func) else product


@RECORD.add("__rdiv__", "__rtruediv__")
@REPLAY.add("__rdiv__", "__rtruediv__")
def _divided_by(reading: Record | Replay, func: Callable[..., Any], input: Tensor, other: Any) -> Any:
    return reading.inside(lambda: torch.reciprocal(input) * other)


# -- matrices ----------------------------------------------------------------------------------------------------------


@RECORD.add(*MATRIX_PRODUCTS)
def _matrix_product(reading: Record, func: Callable[..., Any], input: Tensor, other: Tensor) -> Tensor:
    return multilinear(reading, (input, other), lambda factors: func(*factors))


@REPLAY.add(*MATRIX_PRODUCTS)
def _matrix_product_linear(reading: Replay, func: Callable[..., Any], input: Tensor, other: Tensor) -> Tensor:
    return multilinear_replay(reading, func, (input, other), lambda factors: func(*factors))


@RECORD.add("einsum")
def _einsum(reading: Record, func: Callable[..., Any], equation: str, *operands: Any) -> Tensor:
    tensors = _listed(reading, func, equation, operands)
    return multilinear(reading, tensors, lambda factors: func(equation, *factors))


@REPLAY.add("einsum")
def _einsum_linear(reading: Replay, func: Callable[..., Any], equation: str, *operands: Any) -> Tensor:
    tensors = _listed(reading, func, equation, operands)
    return multilinear_replay(reading, func, tensors, lambda factors: func(equation, *factors))


def _listed(
    reading: Record | Replay, func: Callable[..., Any], equation: Any, operands: tuple[Any, ...]
) -> Sequence[Tensor]:
    if not isinstance(equation, str):
        raise reading.unsupported(func.__name__, "it is called without an equation")
    return operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands


# -- written as others -------------------------------------------------------------------------------------------------


def _added(product: Callable[..., Tensor]) -> Callable[..., Any]:
    """``beta input + alpha product(a, b)``."""

    def rule(
        reading: Record | Replay,
        func: Callable[..., Any],
        input: Any,
        a: Tensor,
        b: Tensor,
        *,
        beta: float = 1,
        alpha: float = 1,
    ) -> Any:
        def written() -> Any:
            # With beta 0 the input may be a buffer that was never filled.
            added = torch.zeros_like(input) if beta == 0 else input if beta == 1 else input * beta
            return added + product(a, b) * alpha

        return reading.inside(written)

    return rule


for _table in (RECORD, REPLAY):
    _table.add("addmm", "addmv", "baddbmm")(_added(torch.matmul))


@RECORD.add("addcmul", "addcmul_")
@REPLAY.add("addcmul", "addcmul_")
def _addcmul(
    reading: Record | Replay, func: Callable[..., Any], input: Any, tensor1: Any, tensor2: Any, *, value: float = 1
) -> Any:
    def written() -> Any:
        product = tensor1 * tensor2 if value == 1 else tensor1 * tensor2 * value
        return input.add_(product) if is_in_place(func) else input + product

    return reading.inside(written)


@RECORD.add("lerp", "lerp_")
@REPLAY.add("lerp", "lerp_")
def _lerp(reading: Record | Replay, func: Callable[..., Any], input: Any, end: Any, weight: Any) -> Any:
    result = reading.inside(lambda: input * (1 - weight) + end * weight)
    return input.copy_(result) if is_in_place(func) else result

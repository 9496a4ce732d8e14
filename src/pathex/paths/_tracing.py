"""Open readings that know which parameter, entry by entry, the weight of each layer is made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.paths._affine import WEIGHTED
from pathex.paths._made import Tensors, saved_to_be_made
from pathex.paths._network import run, untouched
from pathex.paths._reading import FORMED_LIKE, Rule, RuleTable, spellings, tensors_in
from pathex.paths._readings import REPLAY, PerSample, Replay
from pathex.paths._structure import MOVES
from pathex.paths.passes import _reached

__all__ = ["Call", "Traced", "by_units", "from_units", "traverse"]

_WEIGHTED = frozenset(spellings(*WEIGHTED))
_CASTS = frozenset(spellings("to", "type_as", "float", "double", "half", "bfloat16", "type", "cpu", "cuda"))
_SUMS = frozenset(spellings("sum", "nansum", "cumsum", "fold"))
# Functions that are written in other torch functions, and get the weights of layers as arguments.
_COMPOSITE = frozenset([F.multi_head_attention_forward])


@dataclass(frozen=True)
class _Origin:
    """The parameter that a tensor is made of, and for each entry its flat index in it; None where it is mixed."""

    name: str
    index: Tensor | None


@dataclass(frozen=True)
class Call:
    """One call of a convolution or a linear layer.

    Attributes:
        func: The torch function.
        input: What arrives, ``(N, C, ...)``, or ``(..., C)`` for a linear layer.
        weight: The weight as the function gets it.
        rest: Its other arguments after the bias.
        options: Its keyword arguments.
        name: The traced parameter that the weight is made of; None for any other weight.
        index: For each entry of the weight its flat index in the parameter.
    """

    func: Callable[..., Any]
    input: Tensor
    weight: Tensor
    rest: tuple[Any, ...]
    options: dict[str, Any]
    name: str | None
    index: Tensor | None

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return "transpose" in self.func.__name__

    @property
    def groups(self) -> int:
        """Number of groups."""
        # The fourth after the bias, in plain convolutions (after dilation) and transposed ones (after output padding).
        return int(self.options.get("groups", self.rest[3] if len(self.rest) > 3 else 1))

    @property
    def axis(self) -> int:
        """Dimension of the units, of input and output alike."""
        return 1 - self.weight.dim()

    def apply(self, weight: Tensor) -> Tensor:
        """The call with another weight and without bias.

        Args:
            weight: In the shape of its own.

        Returns:
            The output.
        """
        result: Tensor = self.func(self.input, weight, None, *self.rest, **self.options)
        return result


def by_units(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """A weight in the order (groups, outputs of a group, inputs of a group, kernel).

    Args:
        weight: ``(out, in / groups, ...)``, or ``(in, out / groups, ...)`` of a transposed convolution.
        groups: Number of groups.
        transposed: Whether it belongs to a transposed convolution.

    Returns:
        A view, if the weight is contiguous.
    """
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.transpose(1, 2) if transposed else grouped


def from_units(values: Tensor, shape: torch.Size, transposed: bool) -> Tensor:
    """Back from `by_units`.

    Args:
        values: ``(groups, outputs of a group, inputs of a group, kernel)``.
        shape: Shape of the weight.
        transposed: Whether it belongs to a transposed convolution.

    Returns:
        ``values`` in the shape of the weight.
    """
    return (values.transpose(1, 2) if transposed else values).reshape(shape)


class Traced(Replay):
    """An open reading in float64 that hands each call of a layer to `layer`.

    BatchNorm counts 1 and so do gates. Weights that are computed from a parameter entry by entry (standardised, scaled,
    cast) or by moving entries are known by it.

    Args:
        model: The network.
        tensors: Its parameters and buffers by name.
        traced: Names of the parameters to trace.
        pools: How a max pool reads its window.
        per_sample: What happens to coefficients that belong to a sample.
    """

    rules = RuleTable(REPLAY)

    def __init__(
        self, model: nn.Module, tensors: Tensors, traced: Iterable[str], pools: Any, per_sample: PerSample
    ) -> None:
        super().__init__(model, tensors, None, (), "ones", pools, per_sample)
        # The tensor is kept beside its origin, so that its id stays its own.
        self._origins: dict[int, tuple[Tensor, _Origin]] = {}
        for name in traced:
            tensor = tensors[name]
            assert isinstance(tensor, Tensor)
            entries = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
            self._origins[id(tensor)] = tensor, _Origin(name, entries)

    def layer(self, call: Call) -> Tensor:
        """What a call of a convolution or linear layer gives.

        Args:
            call: The call.

        Returns:
            The output.
        """
        raise NotImplementedError

    def origin(self, tensor: Tensor) -> _Origin | None:
        """The traced parameter that a constant is made of.

        Args:
            tensor: The constant.

        Returns:
            Its origin, or None.
        """
        return self._origins[id(tensor)][1] if id(tensor) in self._origins else None

    def on_constant(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().on_constant(func, args, kwargs)
        givers = args[:1] if func in FORMED_LIKE else (args, kwargs)
        sources = {id(t): o for t in tensors_in(givers) if (o := self.origin(t)) is not None}
        if sources:
            self._trace(func, args, kwargs, result, list(sources.values()))
        return result

    def _trace(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, found: list[_Origin]
    ) -> None:
        first = found[0]
        if func in MOVES and func not in _CASTS and func not in _SUMS and len(found) == 1 and first.index is not None:
            index = func(first.index, *args[1:], **kwargs)
        elif all(o.name == first.name and _same(o.index, first.index) for o in found):
            index = first.index  # entry by entry, if the shape is the same
        else:
            index = None
        indices = list(tensors_in([index])) if index is not None else []
        for place, tensor in enumerate(tensors_in([result])):
            entries = indices[min(place, len(indices) - 1)] if indices else None
            if entries is None or entries.shape == tensor.shape:
                self._origins[id(tensor)] = tensor, _Origin(first.name, entries)

    def _apply(self, rule: Rule, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func not in _WEIGHTED and func not in _COMPOSITE:
            for tensor in tensors_in((args, kwargs)):
                origin = None if self.carries(tensor) else self.origin(tensor)
                if origin is not None:
                    why = f"it uses {origin.name!r} as no convolution or linear layer does"
                    raise self.unsupported(getattr(func, "__name__", str(func)), why)
        return super()._apply(rule, func, args, kwargs)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


@Traced.rules.add(*WEIGHTED)
def _layer(
    reading: Traced,
    func: Callable[..., Any],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    if reading.carries(weight) or reading.carries(bias):
        raise reading.unsupported(func.__name__, "its weight or bias depends on the input")
    origin = reading.origin(weight)
    if weight.dim() < 2 or (origin is not None and origin.index is None):
        raise reading.unsupported(func.__name__, "its weight is not made of one parameter entry by entry")
    name, index = (None, None) if origin is None else (origin.name, origin.index)
    return reading.layer(Call(func, input, weight, args, kwargs, name, index))


def traverse(reading: Traced, x: Tensor, output: str | int | None) -> tuple[Tensor, Tensor]:
    """Read the network once, with an input of ones.

    Args:
        reading: The reading.
        x: An image ``(1, ...)``; only its shape counts.
        output: Which of several outputs counts.

    Returns:
        The input, a leaf that has a gradient, and the output.

    Raises:
        UnsupportedOperation: If the network cannot be read.
        RuntimeError: What the network itself raises.
    """
    device = next(iter(reading.tensors.values())).device
    start = torch.ones_like(x[:1], dtype=torch.float64, device=device).requires_grad_()
    with untouched(reading.model), torch.enable_grad():
        with saved_to_be_made(), reading:
            result = run(reading.model, reading.tensors, reading.carry(start.clone()), output)
        return start, _reached(reading, result)

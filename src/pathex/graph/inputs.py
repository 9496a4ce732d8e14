"""What a network gets that has more than one input."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map_only


@dataclass(frozen=True)
class Inputs:
    """The tensors of a batch for a network with several inputs; cut, indexed and moved as one tensor ``(N, ...)`` is.

    Attributes:
        args: What goes in by position: tensors, or nested tuples, lists and dictionaries of them.
        kwargs: What goes in by keyword.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> Any:
        """As a user writes them: a tuple, or a dictionary of those by keyword."""
        return self.kwargs or self.args

    def __len__(self) -> int:
        return len(tensors_in(self)[0])

    def __getitem__(self, index: Any) -> "Inputs":
        return each(self, lambda tensor: tensor[index], floating=False)

    def split(self, size: int) -> list["Inputs"]:
        """Parts of at most ``size`` images."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def to(self, device: torch.device | torch.dtype, dtype: torch.dtype | None = None) -> "Inputs":
        """On a device, what is floating point in another type."""
        if isinstance(device, torch.dtype):
            return each(self, lambda tensor: tensor.to(device))
        moved = each(self, lambda tensor: tensor.to(device), floating=False)
        return moved if dtype is None else moved.to(dtype)

    def cpu(self) -> "Inputs":
        """On the CPU."""
        return self.to(torch.device("cpu"))

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return tensors_in(self)[0].device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in tensors_in(self))


register_pytree_node(Inputs, lambda x: ([x.args, x.kwargs], None), lambda parts, _: Inputs(*parts))

Images = Tensor | Inputs
"""What a network gets: one tensor ``(N, ...)``, or several."""
Tensors = Mapping[str, Tensor]
"""Weights, masks or scores by the names of parameters."""
AnyInputs = TypeVar("AnyInputs", Tensor, Inputs, Images)


def tensors_in(x: Any) -> tuple[Tensor, ...]:
    """The tensors of an input, in the order in which the network gets them."""
    return (x,) if isinstance(x, Tensor) else tuple(leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor))


def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call of a network: what goes in by position, a tuple or anything else, and a dictionary by keyword."""
    if isinstance(x, Inputs):
        return x.args, x.kwargs
    return (x, {}) if isinstance(x, tuple) else ((), x) if isinstance(x, dict) else ((x,), {})


def each(x: AnyInputs, change: Callable[[Tensor], Tensor], *, floating: bool = True) -> AnyInputs:
    """An input with every tensor changed, or only those of a floating-point type: not the numbers of tokens."""
    changed: AnyInputs = tree_map_only(Tensor, lambda t: change(t) if t.is_floating_point() or not floating else t, x)
    return changed


def ones(x: AnyInputs, dtype: torch.dtype, device: torch.device | None = None) -> AnyInputs:
    """Ones in the form of an input."""
    return each(x, lambda tensor: torch.ones_like(tensor, dtype=dtype, device=device))


def concatenated(parts: Sequence[AnyInputs]) -> AnyInputs:
    """Batches one after another."""
    whole = iter([torch.cat(column) for column in zip(*map(tensors_in, parts), strict=True)])
    return each(parts[0], lambda _: next(whole), floating=False)

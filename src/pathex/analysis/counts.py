"""Parameters and multiply-adds of a network, dense and masked.

Counted are the products of convolutions, linear layers and matrix products (attention) for one image; additions of
biases, normalisation, activations and pools are not, as is usual. Padding counts like the image. A removed weight saves
one multiply-add at every place where it is used; products of two activations stay dense under any mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from pathex.errors import InvalidInput, MaskMismatch
from pathex.graph import compute_dtype, untouched
from pathex.masks import Mask, own_module
from pathex.paths import tensors_of

__all__ = ["Counts", "count"]

_NOBODY = ""
_WITH_ADDEND = (torch.ops.aten.addmm, torch.ops.aten.baddbmm)


@dataclass(frozen=True)
class Counts:
    """What a network costs, by parameter.

    Attributes:
        sizes: Name of each parameter to its number of entries.
        products: Name of a parameter to the multiply-adds in which its entries take part, for one image.
        others: Multiply-adds without a parameter: products of two activations.
    """

    sizes: Mapping[str, int]
    products: Mapping[str, int]
    others: int

    def parameters(self, mask: Mask | None = None) -> int:
        """Number of parameters.

        Args:
            mask: What is kept; None is everything.

        Returns:
            Kept entries of what the mask names, and all entries of what it does not name.

        Raises:
            MaskMismatch: If the mask does not fit the network.
        """
        return self._sum(self.sizes, mask)

    def multiply_adds(self, mask: Mask | None = None) -> int:
        """Number of multiply-adds for one image.

        Args:
            mask: What is kept; None is everything.

        Returns:
            The number; weights that the mask does not name count as kept.

        Raises:
            MaskMismatch: If the mask does not fit the network.
        """
        return self._sum(self.products, mask) + self.others

    def _sum(self, numbers: Mapping[str, int], mask: Mask | None) -> int:
        entries = {} if mask is None else mask.counts()
        if wrong := [name for name, entry in entries.items() if self.sizes.get(name) != entry.total]:
            raise MaskMismatch(f"the mask does not fit the network: {wrong[0]!r} is not there, or has another size")
        # Every entry of a weight is used equally often.
        return sum(
            number * entries[name].kept // entries[name].total if name in entries else number
            for name, number in numbers.items()
        )


class _Counter(TorchDispatchMode):
    """Sums torch's own formulas by the parameter that an operator multiplies by.

    What is computed from parameters alone counts as the largest of them: standardised weights, parts of a projection.
    """

    def __init__(self, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.products = dict.fromkeys((*sizes, _NOBODY), 0)
        self._sizes = sizes
        self._owners: dict[int, str] = {}
        # Kept, so that no other tensor gets the address of one of them.
        self._storages: list[Any] = []
        for name, tensor in tensors.items():
            self._own(tensor, name if name in sizes else _NOBODY)

    def _own(self, tensor: Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._owners:
            self._storages.append(storage)
            self._owners[storage._cdata] = name

    def _owner(self, tensor: Tensor) -> str | None:
        """A parameter's name, nobody for other constants, None for what depends on the image."""
        return self._owners.get(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        owners = [self._owner(tensor) for tensor in _tensors((args, kwargs))]
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            addend = 1 if func._overloadpacket in _WITH_ADDEND else 0
            # The weight of a linear layer is the second factor; torch counts a multiply-add as two operations.
            factors = [owner for owner in owners[addend : addend + 2] if owner]
            self.products[factors[-1] if factors else _NOBODY] += formula(*args, **kwargs, out_val=result) // 2
        if None not in owners:
            names = {owner for owner in owners if owner} if formula is None else set()
            owner = max(sorted(names), key=self._sizes.__getitem__, default=_NOBODY)
            for tensor in _tensors(result):
                self._own(tensor, owner)
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


def count(model: nn.Module, shape: Sequence[int]) -> Counts:
    """Count the parameters of a network and the multiply-adds of one image.

    One forward pass in evaluation mode, on the model's own device (``meta`` will do); the model is left as it was.

    Args:
        model: The network.
        shape: Channels, height and width of an image.

    Returns:
        The counts, from which those of every mask follow.

    Raises:
        InvalidInput: If the shape cannot be used, or the network fails on an image of this shape.

    Example:
        >>> counts = count(nn.Conv2d(3, 8, 3, padding=1), (3, 4, 4))
        >>> counts.parameters(), counts.multiply_adds()
        (224, 3456)
        >>> mask = Mask({"weight": torch.arange(8).view(8, 1, 1, 1).expand(8, 3, 3, 3) < 2})
        >>> counts.parameters(mask), counts.multiply_adds(mask)
        (62, 864)
    """
    if len(shape) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        raise InvalidInput(f"shape is {tuple(shape)}; allowed: channels, height and width as whole numbers from 1")
    model = own_module(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    dtype = compute_dtype(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    # Attention is written out in its two products: the fused forms have no formula on every device.
    with untouched(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tensors = tensors_of(model, None, dtype)
        counter = _Counter(tensors, sizes)
        x = torch.zeros(1, *shape, dtype=dtype, device=device)
        try:
            with counter:
                functional_call(model, tensors, (x,))
        except Exception as error:  # the network is the user's, and fails in its own ways
            reason = " ".join(str(error).split())[:200]
            raise InvalidInput(
                f"{type(model).__name__} fails on an image of {tuple(shape)}: {type(error).__name__}: {reason}"
            ) from error
    others = counter.products.pop(_NOBODY)
    return Counts(MappingProxyType(sizes), MappingProxyType(counter.products), others)

"""Parameters and multiply-adds of a network, dense and masked.

Counted are the products of convolutions, linear layers and matrix products (attention) for one image; additions of
biases, normalisation, activations and pools are not, as is usual. Padding counts like the image. A removed weight saves
one multiply-add at every place where it is used; products of two activations stay dense under any mask.
"""

import inspect
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pathex.errors import InvalidInput, MaskMismatch, UnsupportedOperation, check_integer, check_name, refusing
from pathex.graph import compute_dtype, cost, trace
from pathex.masks import Mask, own_module
from pathex.models import create, names, own

# Steps of a width that is a factor: one channel where VGG has its most, 512.
_STEPS = 512


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
        """Kept parameters, and all that the mask does not name; `pathex.errors.MaskMismatch` if it does not fit."""
        return self._sum(self.sizes, mask)

    def multiply_adds(self, mask: Mask | None = None) -> int:
        """Multiply-adds for one image; weights that the mask does not name count as kept."""
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


def count(model: nn.Module, shape: Sequence[int]) -> Counts:
    """Count the parameters of a network and the multiply-adds of one image.

    Args:
        model: The network, traced on its own device (``meta`` will do) and left as it was.
        shape: Channels, height and width of an image.

    Returns:
        The counts, from which those of every mask follow.

    Raises:
        InvalidInput: If the shape cannot be used, or the network fails on an image of this shape.

    Examples:
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
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with refusing(f"{type(model).__name__} fails on an image of {tuple(shape)}: {{}}", UnsupportedOperation):
        found = cost(trace(model, torch.zeros(1, *shape, dtype=compute_dtype(model), device=device)))
    products = {name: found.products.get(name, 0) for name in sizes}
    return Counts(MappingProxyType(sizes), MappingProxyType(products), found.others)


def matching_width(
    name: str,
    *,
    parameters: int | None = None,
    multiply_adds: int | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    **options: Any,
) -> int | float:
    """The largest width at which a dense network costs no more than a given number.

    One of ``parameters`` (those of BatchNorm and biases included) and ``multiply_adds`` (of one image, as `count` has
    them) is given. ``image_size`` is a side of the images, or height and width; other options are those of the network.

    Returns:
        The option ``width`` of the network: channels, or a factor in steps of 1/512.

    Raises:
        UnknownName: If the network is not one of the project's own.
        InvalidInput: If not exactly one number is given, or the narrowest network costs more.

    Examples:
        >>> matching_width("resnet20", parameters=5000)
        2
    """
    check_name("model with a width", name, names())
    if (parameters is None) == (multiply_adds is None):
        raise InvalidInput(f"parameters is {parameters!r}, multiply_adds is {multiply_adds!r}; allowed: one of the two")
    what, most = ("parameters", parameters) if multiply_adds is None else ("multiply_adds", multiply_adds)
    most = check_integer(what, most)
    default = inspect.signature(own(name)[0]).parameters["width"].default
    unit = 1 if isinstance(default, int) else 1 / _STEPS
    shape = (in_channels, *((image_size, image_size) if isinstance(image_size, int) else image_size))

    def cost(steps: int) -> int:
        with torch.device("meta"):  # nothing is drawn or held
            model = create(name, num_classes, in_channels, **{**options, "width": steps * unit})
            if what == "parameters":
                return sum(parameter.numel() for parameter in model.parameters())
            with FlopCounterMode(display=False) as counter:  # cheaper than a trace of each width
                model.eval()(torch.zeros(1, *shape))
        return counter.get_total_flops() // 2  # an addition and a multiplication

    if cost(1) > most:
        counted = what.replace("_", "-")
        raise InvalidInput(
            f"no dense {name!r} has at most {most:,} {counted}; the narrowest, of width {unit}, has {cost(1):,}"
        )
    high = 2
    while cost(high) <= most:
        high *= 2
    return (bisect_right(range(high), most, lo=high // 2, key=cost) - 1) * unit

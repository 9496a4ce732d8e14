"""Small dense networks: the width at which a network is no larger than a ticket."""

import inspect
from bisect import bisect_right
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pathex.errors import InvalidInput, UnknownName, check_integer
from pathex.models import create, names, own

# Steps of a width that is a factor: one channel where VGG has its most, 512.
_STEPS = 512


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

    Example:
        >>> matching_width("resnet20", parameters=5000)
        2
    """
    if name not in names():
        raise UnknownName("model with a width", name, names())
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

"""The names of networks and what they stand for."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from pathex.errors import InvalidInput, UnknownName
from pathex.models import _libraries
from pathex.models._loading import load_weights
from pathex.models._sources import is_file
from pathex.models.resnet import CifarResNet
from pathex.models.resnet_tiny import TinyResNet
from pathex.models.vgg import CifarVGG

__all__ = ["create", "describe", "names", "prefixes"]

_Library = Callable[[str, int, int, str | None, dict[str, Any]], nn.Module]

_OWN: Mapping[str, tuple[Callable[..., nn.Module], str]] = MappingProxyType(
    {
        **{
            f"resnet{depth}": (
                partial(CifarResNet, depth),
                f"CIFAR ResNet-{depth}, 3x3 stem, stages of 16, 32, 64 channels (options width=16, shortcut=conv|pad)",
            )
            for depth in (20, 32, 44, 56, 110)
        },
        **{
            f"resnet{depth}_tiny": (
                partial(TinyResNet, depth),
                f"ResNet-{depth} for images of 64 pixels, 3x3 stem of stride 1, no max pool (option width=64)",
            )
            for depth in (18, 34, 50)
        },
        **{
            f"vgg{depth}_bn": (
                partial(CifarVGG, depth),
                f"VGG-{depth} with BatchNorm for small images, one linear layer (option width=1.0, a factor)",
            )
            for depth in (11, 16, 19)
        },
    }
)
_PREFIXES: Mapping[str, tuple[_Library, str]] = MappingProxyType(
    {
        "timm": (_libraries.from_timm, "every model of timm: timm:NAME"),
        "torchvision": (_libraries.from_torchvision, "classification models of torchvision: torchvision:NAME"),
        "smp": (_libraries.from_smp, "segmentation models of segmentation-models-pytorch (extra seg): smp:NAME"),
    }
)
_FACTORY_FORM = "package.module:factory"


def create(
    name: str, num_classes: int = 10, in_channels: int = 3, *, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    """Make a network by name.

    Args:
        name: An own name (see :func:`names`), ``timm:NAME``, ``torchvision:NAME``, ``smp:NAME`` or
            ``package.module:factory``.
        num_classes: Outputs.
        in_channels: Channels of the images.
        weights: None for random initialization from PyTorch's global generator; a safetensors or torch file; a
            checkpoint of self-supervised training, ``mocov2:PATH``, ``dino:PATH`` or ``clip:PATH``; for networks of
            libraries also ``imagenet`` (what the library prefers) or one of the library's tags. See
            :func:`load_weights`.
        **options: Options of this network, such as ``width``.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        InvalidInput: If a name, an option or the weights cannot be used.

    Example:
        >>> model = create("resnet20", num_classes=10, in_channels=1, width=4)
        >>> model.conv
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInput(f"{argument} must be a positive integer, got {value!r}")
    text = None if weights is None else str(weights)
    prefix, colon, rest = name.partition(":")
    if prefix in _PREFIXES and colon:
        return _PREFIXES[prefix][0](rest, num_classes, in_channels, text, options)
    if colon:
        return _libraries.from_factory(name, num_classes, in_channels, text, options)
    return _create_own(name, num_classes, in_channels, text, options)


def _create_own(
    name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]
) -> nn.Module:
    _check_name("model", name, [*_OWN, *prefixes()])
    factory = _OWN[name][0]
    allowed = [
        option for option in inspect.signature(factory).parameters if option not in {"num_classes", "in_channels"}
    ]
    for option in options:
        _check_name(f"option of model {name!r}:", option, allowed)
    if weights is not None and not is_file(weights):
        raise InvalidInput(f"weights {weights!r} of model {name!r}: no such file, and own models have no tags")
    model = factory(num_classes=num_classes, in_channels=in_channels, **options)
    if weights is not None:
        load_weights(model, weights)
    return model


def names() -> list[str]:
    """Names of the project's own networks.

    Returns:
        The names, smallest network of each family first.
    """
    return list(_OWN)


def prefixes() -> dict[str, str]:
    """The forms of name that lead to other packages.

    Returns:
        Form (``timm:NAME``) and one line each.
    """
    forms = {f"{prefix}:NAME": text for prefix, (_, text) in _PREFIXES.items()}
    return {
        **forms,
        _FACTORY_FORM: "any importable factory or class; gets num_classes and in_channels if it takes them",
    }


def describe(name: str) -> str:
    """One line about a network or a form of name. An unknown name raises :class:`~pathex.errors.InvalidInput`.

    Args:
        name: An own name, or a name with a prefix.

    Returns:
        The line.
    """
    prefix, colon, _ = name.partition(":")
    if colon:
        return prefixes().get(f"{prefix}:NAME", prefixes()[_FACTORY_FORM])
    _check_name("model", name, [*_OWN, *prefixes()])
    return _OWN[name][1]


def _check_name(kind: str, name: str, allowed: list[str]) -> None:
    if name not in allowed:
        raise UnknownName(kind, name, allowed)

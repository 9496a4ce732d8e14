"""The names of networks and what they stand for."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from pathex.errors import InvalidInput, UnknownName, check_integer, check_names, import_callable
from pathex.files import MOST_CLASSES
from pathex.models.libraries import LIBRARIES, from_factory, with_file
from pathex.models.networks import CifarResNet, CifarVGG, TinyResNet
from pathex.models.weights import is_file

_RESNET = "CIFAR ResNet-{}, 3x3 stem, stages of 16, 32, 64 channels (options width=16, shortcut=conv|pad)"
_TINY = "ResNet-{} for images of 64 pixels, 3x3 stem of stride 1, no max pool (option width=64)"
_VGG = "VGG-{} with BatchNorm for small images, one linear layer (option width=1.0, a factor)"
_OWN: Mapping[str, tuple[Callable[..., nn.Module], str]] = MappingProxyType(
    {f"resnet{depth}": (partial(CifarResNet, depth), _RESNET.format(depth)) for depth in (20, 32, 44, 56, 110)}
    | {f"resnet{depth}_tiny": (partial(TinyResNet, depth), _TINY.format(depth)) for depth in (18, 34, 50)}
    | {f"vgg{depth}_bn": (partial(CifarVGG, depth), _VGG.format(depth)) for depth in (11, 16, 19)}
)
_FACTORY_FORM = "package.module:factory"


def create(
    name: str, num_classes: int = 10, in_channels: int = 3, *, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    """Make a network by name.

    Args:
        name: An own name (see `names`), ``timm:NAME``, ``torchvision:NAME``, ``smp:NAME`` or
            ``package.module:factory``.
        num_classes: Outputs.
        in_channels: Channels of the images.
        weights: None for random initialization from PyTorch's global generator; a safetensors or torch file; a
            checkpoint of self-supervised training, ``mocov2:PATH``, ``dino:PATH`` or ``clip:PATH``; for networks of
            libraries also ``imagenet`` (what the library prefers) or one of the library's tags. See
            `load_weights`.
        **options: Options of this network, such as ``width``.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        InvalidInput: If a name, an option or weights cannot be used.

    Examples:
        >>> model = create("resnet20", num_classes=10, in_channels=1, width=4)
        >>> model.conv
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    check_integer("num_classes", num_classes, 1, MOST_CLASSES)
    check_integer("in_channels", in_channels)
    text = None if weights is None else str(weights)
    prefix, colon, rest = name.partition(":")
    if colon and prefix in LIBRARIES:
        return LIBRARIES[prefix][0](rest, num_classes, in_channels, text, options)
    if colon:
        model = from_factory(name, import_callable("model", name), num_classes, in_channels, options)
    else:
        factory, _ = own(name)
        allowed = set(inspect.signature(factory).parameters) - {"num_classes", "in_channels"}
        check_names(f"option of model {name!r}:", options, allowed)
        model = factory(num_classes=num_classes, in_channels=in_channels, **options)
    if text is not None and not is_file(text):
        kind = "factories" if colon else "own models"
        raise InvalidInput(f"weights {text!r} of model {name!r}: no such file, and {kind} have no tags")
    return with_file(model, text)


def names() -> list[str]:
    """Names of the project's own networks, smallest of each family first."""
    return list(_OWN)


def prefixes() -> dict[str, str]:
    """The forms of name that lead to other packages (``timm:NAME``), with a line about each."""
    forms = {f"{prefix}:NAME": line for prefix, (_, line) in LIBRARIES.items()}
    return forms | {_FACTORY_FORM: "any importable factory or class; gets num_classes and in_channels if it takes them"}


def is_foreign(name: str) -> bool:
    """Whether a name stands for a factory that is imported: code of others."""
    prefix, colon, _ = name.partition(":")
    return bool(colon) and prefix not in LIBRARIES


def describe(name: str) -> str:
    """One line about a network or a form of name. An unknown name raises `pathex.errors.InvalidInput`."""
    prefix, colon, _ = name.partition(":")
    return prefixes().get(f"{prefix}:NAME", prefixes()[_FACTORY_FORM]) if colon else own(name)[1]


def own(name: str) -> tuple[Callable[..., nn.Module], str]:
    """Factory of one of the own networks, and a line about it; `pathex.errors.UnknownName` for others."""
    if name not in _OWN:
        raise UnknownName("model", name, [*_OWN, *prefixes()])
    return _OWN[name]

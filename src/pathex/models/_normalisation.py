"""The channel statistics that pre-trained weights expect their images to be normalised by."""

import inspect
from pathlib import Path
from typing import Any

from pathex.errors import InvalidInput
from pathex.models._encoders import smp_package
from pathex.models._sources import is_file, split_source

__all__ = ["expected_normalisation"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def expected_normalisation(name: str, weights: str | Path | None, **options: Any) -> Statistics | None:
    """Mean and standard deviation that images were normalised by when weights were trained.

    MoCo v2 and DINO used the statistics of ImageNet, CLIP its own. For tags the library says it. A plain file for a
    network of a library is taken for weights that were trained as the library's own; networks without a library have
    no such weights.

    Args:
        name: Name of the network, as for :func:`create`.
        weights: Its weights, as for :func:`create`.
        **options: Its options, of which ``encoder_name`` counts.

    Returns:
        Mean and standard deviation of each channel, of pixels in [0, 1]; None if the weights are random or nothing is
        known about them. Statistics that cannot be looked up raise `pathex.errors.InvalidInput`.

    Example:
        >>> expected_normalisation("timm:tf_efficientnet_lite0", "imagenet")
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    if weights is None:
        return None
    from timm.data import constants

    text = str(weights)
    kind = split_source(text)[0] if is_file(text) else ""
    if kind == "clip":
        return _pair(constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD)
    if kind:
        return _pair(constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)
    file = is_file(text)
    tag = None if file or text == "imagenet" else text
    library, _, own = name.partition(":")
    if library == "timm":
        return _of_timm(own, tag)
    if library == "torchvision":
        return _of_torchvision(own, tag)
    return _of_encoder(own, tag, file, options) if library == "smp" else None


def _pair(mean: Any, std: Any) -> Statistics:
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)


def _of_timm(name: str, tag: str | None) -> Statistics | None:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name if tag is None else f"{name.partition('.')[0]}.{tag}", allow_unregistered=True)
    return None if config is None else _pair(config.mean, config.std)


def _of_torchvision(name: str, tag: str | None) -> Statistics | None:
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    known = models.get_model_weights(name)
    if tag is not None and tag not in known.__members__:
        return None
    transforms = (known.DEFAULT if tag is None else known[tag]).transforms()
    return _pair(transforms.mean, transforms.std)


def _of_encoder(name: str, tag: str | None, file: bool, options: dict[str, Any]) -> Statistics | None:
    smp = smp_package(f"smp:{name}")
    network = getattr(smp, name, None)
    if network is None:
        return None
    encoder = options.get("encoder_name", inspect.signature(network).parameters["encoder_name"].default)
    if encoder.startswith("tu-"):
        return _of_timm(encoder.removeprefix("tu-"), tag)
    kind = smp.encoders.encoders.get(encoder)
    if kind is None:
        return None
    if any(base.__module__.startswith("torchvision.") for base in kind["encoder"].__mro__):
        from timm.data import constants

        return _pair(constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)
    if file:  # where these networks come from, images were normalised in ways of their own
        return None
    try:
        found = smp.encoders.get_preprocessing_params(encoder, tag or "imagenet")
    except Exception as error:  # read from the hub, whose failures are of many kinds
        reason = " ".join(str(error).split())[:200]
        raise InvalidInput(
            f"the normalisation that encoder {encoder!r} expects cannot be looked up ({type(error).__name__}: {reason})"
        ) from error
    return _pair(found["mean"], found["std"])

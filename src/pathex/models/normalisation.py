"""The channel statistics that pre-trained weights expect their images to be normalised by."""

import inspect
from pathlib import Path
from typing import Any

from pathex.errors import refusing
from pathex.models.heads import smp_package
from pathex.models.weights import is_file, split_source

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def expected_normalisation(name: str, weights: str | Path | None, **options: Any) -> Statistics | None:
    """Mean and standard deviation that images were normalised by when weights were trained, named as for `create`.

    MoCo v2 and DINO used the statistics of ImageNet, CLIP its own. For tags the library says it. A plain file for a
    network of a library is taken for weights that were trained as the library's own.

    Returns:
        For each channel, of pixels in [0, 1]; None if the weights are random or nothing is known about them.
        Statistics that cannot be looked up raise `pathex.errors.InvalidInput`.

    Examples:
        >>> expected_normalisation("timm:tf_efficientnet_lite0", "imagenet")
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    if weights is None:
        return None
    from timm.data import constants

    text = str(weights)
    file = is_file(text)
    kind = split_source(text)[0] if file else ""
    if kind == "clip":
        return _floats(constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD)
    if kind:
        return _imagenet()
    tag = None if file or text == "imagenet" else text
    library, _, own = name.partition(":")
    if library == "timm":
        return _timm(own, tag)
    if library == "torchvision":
        return _torchvision(own, tag)
    return _smp(own, tag, file, options) if library == "smp" else None


def _floats(mean: Any, std: Any) -> Statistics:
    return tuple(map(float, mean)), tuple(map(float, std))


def _imagenet() -> Statistics:
    from timm.data import constants

    return _floats(constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD)


def _timm(name: str, tag: str | None) -> Statistics | None:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name if tag is None else f"{name.partition('.')[0]}.{tag}", allow_unregistered=True)
    return None if config is None else _floats(config.mean, config.std)


def _torchvision(name: str, tag: str | None) -> Statistics | None:
    from torchvision import models

    known = models.get_model_weights(name) if name in models.list_models(module=models) else ()
    if not known or (tag is not None and tag not in known.__members__):
        return None
    transforms = (known.DEFAULT if tag is None else known[tag]).transforms()
    return _floats(transforms.mean, transforms.std)


def _smp(name: str, tag: str | None, file: bool, options: dict[str, Any]) -> Statistics | None:
    smp = smp_package(f"smp:{name}")
    network = getattr(smp, name, None)
    if network is None:
        return None
    encoder = options.get("encoder_name", inspect.signature(network).parameters["encoder_name"].default)
    if encoder.startswith("tu-"):
        return _timm(encoder.removeprefix("tu-"), tag)
    kind = smp.encoders.encoders.get(encoder)
    if kind is None:
        return None
    if any(base.__module__.startswith("torchvision.") for base in kind["encoder"].__mro__):
        return _imagenet()
    if file:  # where these networks come from, images were normalised in ways of their own
        return None
    # Read from the hub, whose failures are of many kinds.
    with refusing(f"the normalisation that encoder {encoder!r} expects cannot be looked up ({{}})"):
        found = smp.encoders.get_preprocessing_params(encoder, tag or "imagenet")
    return _floats(found["mean"], found["std"])

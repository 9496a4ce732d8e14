"""Networks of other packages, behind the arguments that pathex gives to its own."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from pathex.errors import InvalidInput, PathexWarning, check_names, refusing
from pathex.models.heads import head_parameters, smp_package, timm_tags
from pathex.models.weights import WeightsReport, fit, is_file, load_weights

Library = Callable[[str, int, int, str | None, dict[str, Any]], nn.Module]
"""From name, classes, channels, weights and further options to a network."""


def _timm(name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]) -> nn.Module:
    """A network of timm, with or without a tag in its name (``resnet50.a1_in1k``)."""
    import timm

    title = f"timm:{name}"
    if not timm.is_model(name):
        raise _unknown(f"timm model {name!r}", name, timm.list_models(), "all: timm.list_models()")
    arch, _, own_tag = name.partition(".")
    tags = timm_tags(arch)
    if own_tag and own_tag not in tags:
        raise _unknown(f"tag of timm model {name!r}", own_tag, tags, f"known: {', '.join(tags) or 'none'}")
    if "pretrained" in options:
        raise InvalidInput(f"option 'pretrained' of model {title!r} is set by weights")
    arguments = {"num_classes": num_classes, "in_chans": in_channels, **options}
    if weights is None or is_file(weights):
        return with_file(_build(title, timm.create_model, arch, **arguments), weights)
    _check_tag(title, weights, tags)
    chosen = name if weights == "imagenet" else f"{arch}.{weights}"
    model = _fetch(title, weights, timm.create_model, chosen, pretrained=True, **arguments)
    classes = model.pretrained_cfg.get("num_classes", num_classes)
    if classes != num_classes:
        head = head_parameters(model, num_classes)
        loaded = tuple(key for key in model.state_dict() if key not in head)
        report = WeightsReport(f"timm:{chosen}", loaded, tuple(head), (), (classes, num_classes))
        warnings.warn(report.summary(), PathexWarning, stacklevel=2)
    return model


def _torchvision(
    name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]
) -> nn.Module:
    """A classification network of torchvision, whose first convolution is adapted to the channels."""
    from timm.models import adapt_input_conv
    from torchvision import models

    title = f"torchvision:{name}"
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(f"torchvision model {name!r}", name, known, "all: torchvision.models.list_models()")
    if name in {"googlenet", "inception_v3"}:
        # torchvision warns about its default initialization of these two, and their training heads return tuples.
        options = {"init_weights": True, "aux_logits": False, **options}
    model = _build(title, models.get_model, name, num_classes=num_classes, **options)
    stem = _adapt_stem(model, title, in_channels)
    if weights is None or is_file(weights):
        return with_file(model, weights)
    tags = models.get_model_weights(name)
    _check_tag(title, weights, [tag.name for tag in tags])
    tag = tags.DEFAULT if weights == "imagenet" else tags[weights]
    state = _fetch(title, weights, tag.get_state_dict, progress=False, check_hash=True)
    own = model.state_dict()
    training_heads = ("aux1.", "aux2.", "AuxLogits.")
    state = {key: value for key, value in state.items() if key in own or not key.startswith(training_heads)}
    if stem is not None:
        state[stem] = adapt_input_conv(in_channels, state[stem])
    fit(model, state, source=f"{name}.{tag.name}")
    return model


def _smp(name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]) -> nn.Module:
    """A segmentation network; ``weights`` may be a file of the whole or of a classifier, or a tag of the encoder."""
    title = f"smp:{name}"
    smp = smp_package(title)
    known = {kind.__name__: kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if name not in known:
        raise _unknown(f"segmentation model {name!r}", name, known, f"known: {', '.join(known)}")
    encoder = _checked_encoder(title, inspect.signature(known[name]).parameters, options)
    tags = _encoder_tags(smp, encoder)
    arguments = {"classes": num_classes, "in_channels": in_channels, **options}
    if weights is None or is_file(weights):
        return with_file(_build(title, known[name], encoder_weights=None, **arguments), weights)
    title = f"{title} with {encoder}"
    _check_tag(title, weights, tags)
    arguments["encoder_weights"] = weights
    if encoder.startswith("tu-"):
        chosen = encoder if weights == "imagenet" else f"{encoder.partition('.')[0]}.{weights}"
        arguments |= {"encoder_weights": True, "encoder_name": chosen}
    return _fetch(title, weights, known[name], **arguments)


LIBRARIES: dict[str, tuple[Library, str]] = {
    "timm": (_timm, "every model of timm: timm:NAME"),
    "torchvision": (_torchvision, "classification models of torchvision: torchvision:NAME"),
    "smp": (_smp, "segmentation models of segmentation-models-pytorch (extra seg): smp:NAME"),
}
"""What makes the networks of each prefix, and a line about it."""


def from_factory(
    name: str, factory: Callable[..., Any], num_classes: int, in_channels: int, options: dict[str, Any]
) -> nn.Module:
    """A network of a factory, called ``name`` in messages, which gets the numbers that it has arguments for."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"model {name!r}: no factory with a readable signature") from error
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "num_classes" in parameters or open_ended:
        options = {**options, "num_classes": num_classes}
    # Factories that take any keyword mostly assume 3 channels and pass the rest on.
    if "in_channels" in parameters or (open_ended and in_channels != 3):
        options = {**options, "in_channels": in_channels}
    model = _build(name, factory, **options)
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model {name!r}: the factory returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _encoder_tags(smp: Any, encoder: str) -> list[str]:
    if encoder.startswith("tu-"):
        return timm_tags(encoder.removeprefix("tu-"))
    known = smp.encoders.encoders
    if encoder not in known:
        raise _unknown(f"encoder {encoder!r}", encoder, known, "all: smp.encoders.get_encoder_names()")
    return list(known[encoder]["pretrained_settings"])


def _checked_encoder(title: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> str:
    for option, instead in (("encoder_weights", "weights"), ("classes", "num_classes")):
        if option in options:
            raise InvalidInput(f"option {option!r} of model {title!r} is set by {instead}")
    encoder = options.get("encoder_name", parameters["encoder_name"].default)
    if not isinstance(encoder, str):
        raise InvalidInput(f"option 'encoder_name' of model {title!r} must be the name of an encoder, got {encoder!r}")
    if not encoder.startswith("tu-"):  # timm checks its own; the package's encoders ignore what they do not know
        check_names(
            f"option of model {title!r}:",
            options,
            set(parameters) - {"classes", "encoder_weights", "in_channels", "kwargs"},
        )
    return encoder


def with_file(model: nn.Module, weights: str | None) -> nn.Module:
    """A network with the weights of a file, if one is named."""
    if weights is not None:
        load_weights(model, weights)
    return model


def _build(title: str, factory: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with refusing(f"model {title!r} cannot be made with {kwargs}: {{}}"):  # of any kind: the factory is not ours
        return factory(*args, **kwargs)


def _fetch(title: str, weights: str, load: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    remedy = "download them elsewhere and give the file"
    with refusing(f"weights {weights!r} of model {title!r} cannot be loaded ({{}}); {remedy}"):
        return load(*args, **kwargs)


def _unknown(what: str, name: str, known: Iterable[str], where: str) -> InvalidInput:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    return InvalidInput(f"unknown {what}.{hint} ({where})")


def _check_tag(title: str, weights: str, tags: Iterable[str]) -> None:
    known = sorted(tags)
    if not known:
        raise InvalidInput(f"weights {weights!r}: no such file, and model {title!r} has no pre-trained weights")
    if weights not in {"imagenet", *known}:
        tags = ", ".join(["imagenet", *known])
        raise InvalidInput(f"weights {weights!r}: no such file, and no tag of model {title!r}. Tags: {tags}")


def _adapt_stem(model: nn.Module, title: str, in_channels: int) -> str | None:
    """Give the first convolution other channels, redrawn with the deviation it had; the name of its weight."""
    if in_channels == 3:
        return None
    key, stem = next(((key, m) for key, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if stem is None or stem.in_channels != 3 or stem.groups != 1:
        raise InvalidInput(f"model {title!r} takes images of 3 channels only, got in_channels={in_channels}")
    old: Tensor = stem.weight.detach()
    stem.in_channels = in_channels
    stem.weight = nn.Parameter(old.new_empty(old.shape[0], in_channels, *old.shape[2:]))
    nn.init.normal_(stem.weight, std=float(old.std()))
    return f"{key}.weight"

"""Networks of other packages, behind the arguments that pathex gives to its own."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from pathex.errors import InvalidInput, PathexWarning, UnknownName
from pathex.importing import import_callable
from pathex.models._encoders import smp_package
from pathex.models._heads import head_parameters
from pathex.models._loading import WeightsReport, fit, load_weights
from pathex.models._sources import is_file

__all__ = ["from_factory", "from_smp", "from_timm", "from_torchvision"]

# torchvision warns about its default initialization of these two, and their training heads return tuples.
_INCEPTION_OPTIONS: Mapping[str, bool] = MappingProxyType({"init_weights": True, "aux_logits": False})
_SMP_ARGUMENTS = frozenset({"classes", "encoder_weights", "in_channels", "kwargs"})
_INCEPTION_HEADS = ("aux1.", "aux2.", "AuxLogits.")


def from_timm(name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]) -> nn.Module:
    """A network of timm.

    Args:
        name: Name in timm, with or without a tag (``resnet50``, ``resnet50.a1_in1k``).
        num_classes: Outputs.
        in_channels: Channels of the images; timm adapts the first convolution and its weights.
        weights: None, a file, ``imagenet`` (the pre-trained weights timm prefers) or a tag of timm.
        options: Arguments of timm's factory.

    Returns:
        The network.

    Raises:
        InvalidInput: If name, weights or options are not known or the weights cannot be downloaded.
    """
    import timm

    if not timm.is_model(name):
        raise InvalidInput(_unknown(f"timm model {name!r}", name, timm.list_models(), "all: timm.list_models()"))
    arch, _, own_tag = name.partition(".")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{arch}.*")]
    if own_tag and own_tag not in tags:
        raise InvalidInput(
            _unknown(f"tag of timm model {name!r}", own_tag, tags, f"known: {', '.join(tags) or 'none'}")
        )
    if weights is None or is_file(weights):
        model = _build(
            f"timm:{name}", timm.create_model, arch, num_classes=num_classes, in_chans=in_channels, **options
        )
        return _with_file(model, weights)
    _check_tag(f"timm:{name}", weights, tags)
    chosen = arch if weights == "imagenet" else f"{arch}.{weights}"
    if weights == "imagenet" and own_tag:
        chosen = name
    try:
        model = timm.create_model(chosen, pretrained=True, num_classes=num_classes, in_chans=in_channels, **options)
    except Exception as error:
        raise InvalidInput(_not_loaded(f"timm:{name}", weights, error)) from error
    classes = model.pretrained_cfg.get("num_classes", num_classes)
    if classes != num_classes:
        _warn_head(model, f"timm:{chosen}", classes, num_classes)
    return model


def from_torchvision(
    name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]
) -> nn.Module:
    """A classification network of torchvision.

    Args:
        name: Name in torchvision, such as ``resnet18``.
        num_classes: Outputs.
        in_channels: Channels of the images. The first convolution is adapted: redrawn with the standard deviation it
            had, or its pre-trained weights spread over the channels as timm does.
        weights: None, a file, ``imagenet`` (torchvision's default weights) or a tag of torchvision.
        options: Arguments of torchvision's factory.

    Returns:
        The network.

    Raises:
        InvalidInput: If name, weights or options are not known or the weights cannot be downloaded.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InvalidInput(
            _unknown(f"torchvision model {name!r}", name, known, "all: torchvision.models.list_models()")
        )
    if name in {"googlenet", "inception_v3"}:
        options = {**_INCEPTION_OPTIONS, **options}
    model = _build(f"torchvision:{name}", models.get_model, name, num_classes=num_classes, **options)
    stem = _adapt_stem(model, f"torchvision:{name}", in_channels)
    if weights is None or is_file(weights):
        return _with_file(model, weights)
    tags = {tag.name: tag for tag in models.get_model_weights(name)}
    _check_tag(f"torchvision:{name}", weights, tags)
    tag = models.get_model_weights(name).DEFAULT if weights == "imagenet" else tags[weights]
    try:
        state = tag.get_state_dict(progress=False, check_hash=True)
    except Exception as error:
        raise InvalidInput(_not_loaded(f"torchvision:{name}", weights, error)) from error
    fit(model, _fitted(model, state, stem, in_channels), source=f"{name}.{tag.name}")
    return model


def from_smp(name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]) -> nn.Module:
    """A segmentation network of segmentation-models-pytorch.

    Args:
        name: Name of the network in the package, such as ``DeepLabV3Plus``.
        num_classes: Classes of a pixel.
        in_channels: Channels of the images; the package adapts the first convolution.
        weights: None, a file (of the whole network, or of a classification network for the encoder), ``imagenet``, or
            a tag that the package or, for ``tu-`` encoders, timm has for the encoder.
        options: Arguments of the network: ``encoder_name`` (``tu-NAME`` takes it from timm), ``encoder_output_stride``
            (8 or 16), ...

    Returns:
        The network. Nothing is downloaded unless ``weights`` is a tag.

    Raises:
        InvalidInput: If the package is missing, name or weights are not known, or the weights cannot be downloaded.
        UnknownName: If an option is not known.
    """
    smp = smp_package(f"smp:{name}")
    known = {kind.__name__: kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if name not in known:
        raise InvalidInput(_unknown(f"segmentation model {name!r}", name, known, f"known: {', '.join(known)}"))
    for option, instead in (("encoder_weights", "weights"), ("classes", "num_classes")):
        if option in options:
            raise InvalidInput(f"option {option!r} of model 'smp:{name}' is set by {instead}")
    parameters = inspect.signature(known[name]).parameters
    encoder = options.get("encoder_name", parameters["encoder_name"].default)
    if not isinstance(encoder, str):
        raise InvalidInput(
            f"option 'encoder_name' of model 'smp:{name}' must be the name of an encoder, got {encoder!r}"
        )
    tags = encoder_tags(smp, encoder)
    for option in options:  # timm checks its own; the package's encoders take and ignore what they do not know
        if not encoder.startswith("tu-") and option not in parameters:
            raise UnknownName(f"option of model 'smp:{name}':", option, set(parameters) - _SMP_ARGUMENTS)
    arguments = {"classes": num_classes, "in_channels": in_channels, **options}
    if weights is None or is_file(weights):
        return _with_file(_build(f"smp:{name}", known[name], encoder_weights=None, **arguments), weights)
    _check_tag(f"smp:{name} with {encoder}", weights, tags)
    if not encoder.startswith("tu-"):
        arguments["encoder_weights"] = weights
    else:
        arguments["encoder_weights"] = True
        arguments["encoder_name"] = encoder if weights == "imagenet" else f"{encoder.partition('.')[0]}.{weights}"
    try:
        return known[name](**arguments)
    except Exception as error:
        raise InvalidInput(_not_loaded(f"smp:{name} with {encoder}", weights, error)) from error


def encoder_tags(smp: Any, encoder: str) -> list[str]:
    """Tags of the weights that there are for an encoder.

    Args:
        smp: The package segmentation-models-pytorch.
        encoder: Name of the encoder.

    Returns:
        The tags. An unknown encoder raises :class:`~pathex.errors.InvalidInput`.

    Raises:
        InvalidInput: If there is no such encoder.
    """
    if encoder.startswith("tu-"):
        import timm

        arch = encoder.removeprefix("tu-").partition(".")[0]
        return [full.partition(".")[2] for full in timm.list_pretrained(f"{arch}.*")]
    if encoder not in smp.encoders.encoders:
        raise InvalidInput(
            _unknown(f"encoder {encoder!r}", encoder, smp.encoders.encoders, "all: smp.encoders.get_encoder_names()")
        )
    return list(smp.encoders.encoders[encoder]["pretrained_settings"])


def from_factory(
    name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]
) -> nn.Module:
    """A network of any factory or class that can be imported.

    Args:
        name: ``package.module:factory``.
        num_classes: Outputs, given to a factory that has an argument of this name or takes any keyword.
        in_channels: Channels of the images, given to a factory that has an argument of this name, or that takes any
            keyword when it differs from 3, which factories assume.
        weights: None or a file.
        options: Further arguments.

    Returns:
        The network.

    Raises:
        InvalidInput: If the factory cannot be imported, refuses the arguments or returns no module.
    """
    factory = import_callable("model", name)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"model {name!r}: no factory with a readable signature") from error
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    arguments = dict(options)
    if "num_classes" in parameters or open_ended:
        arguments["num_classes"] = num_classes
    if "in_channels" in parameters or (open_ended and in_channels != 3):
        arguments["in_channels"] = in_channels
    model = _build(name, factory, **arguments)
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model {name!r}: the factory returned {type(model).__name__}, not a torch.nn.Module")
    if weights is not None and not is_file(weights):
        raise InvalidInput(f"weights {weights!r} of model {name!r}: no such file, and factories have no tags")
    return _with_file(model, weights)


def _with_file(model: nn.Module, weights: str | None) -> nn.Module:
    if weights is not None:
        load_weights(model, weights)
    return model


def _warn_head(model: nn.Module, source: str, classes: int, num_classes: int) -> None:
    """Say that a classifier keeps its initialization, where a library loaded the weights itself."""
    head = head_parameters(model, num_classes)
    loaded = tuple(name for name in model.state_dict() if name not in head)
    report = WeightsReport(source, loaded, tuple(head), (), (classes, num_classes))
    warnings.warn(report.summary(), PathexWarning, stacklevel=2)


def _build(name: str, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a factory that is not ours, whose errors may be of any kind.

    Args:
        name: Name of the model, for the message.
        factory: The callable.
        *args: Its arguments.
        **kwargs: Its arguments by name.

    Returns:
        What the factory returned.

    Raises:
        InvalidInput: If the factory raised anything.
    """
    try:
        return factory(*args, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InvalidInput(f"model {name!r} cannot be made with {kwargs}: {type(error).__name__}: {reason}") from error


def _unknown(what: str, name: str, known: Iterable[str], where: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    return f"unknown {what}.{hint} ({where})"


def _check_tag(name: str, weights: str, tags: Iterable[str]) -> None:
    known = sorted(tags)
    if not known:
        raise InvalidInput(f"weights {weights!r}: no such file, and model {name!r} has no pre-trained weights")
    if weights != "imagenet" and weights not in known:
        allowed = f"imagenet, {', '.join(known)}"
        raise InvalidInput(f"weights {weights!r}: no such file, and no tag of model {name!r}. Tags: {allowed}")


def _not_loaded(name: str, weights: str, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"weights {weights!r} of model {name!r} cannot be loaded ({type(error).__name__}: {reason});"
        " download them elsewhere and give the file"
    )


def _adapt_stem(model: nn.Module, name: str, in_channels: int) -> str | None:
    if in_channels == 3:
        return None
    found = next(((key, m) for key, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)
    if found is None or found[1].in_channels != 3 or found[1].groups != 1:
        raise InvalidInput(f"model {name!r} takes images of 3 channels only, got in_channels={in_channels}")
    key, stem = found
    old = stem.weight.detach()
    stem.in_channels = in_channels
    stem.weight = nn.Parameter(old.new_empty(old.shape[0], in_channels, *old.shape[2:]))
    nn.init.normal_(stem.weight, std=float(old.std()))
    return f"{key}.weight"


def _fitted(model: nn.Module, state: Mapping[str, Tensor], stem: str | None, in_channels: int) -> dict[str, Tensor]:
    from timm.models import adapt_input_conv

    own = model.state_dict()
    kept = {name: value for name, value in state.items() if name in own or not name.startswith(_INCEPTION_HEADS)}
    if stem is not None:
        kept[stem] = adapt_input_conv(in_channels, kept[stem])
    return kept

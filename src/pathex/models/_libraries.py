"""Networks of other packages, behind the arguments that pathex gives to its own."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.importing import import_callable
from pathex.models._weights import load_weights, read_weights, warn_head

__all__ = ["from_factory", "from_timm", "from_torchvision", "refuse_smp"]

_FILE_ENDINGS = frozenset({".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".tar"})
# torchvision warns about its default initialization of these two, and their training heads return tuples.
_INCEPTION_OPTIONS: Mapping[str, bool] = MappingProxyType({"init_weights": True, "aux_logits": False})
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
        return _with_file(model, weights, num_classes)
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
        head = model.pretrained_cfg.get("classifier", "the classifier")
        warn_head(f"timm:{chosen}", [head] if isinstance(head, str) else list(head), classes, num_classes)
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
        return _with_file(model, weights, num_classes)
    tags = {tag.name: tag for tag in models.get_model_weights(name)}
    _check_tag(f"torchvision:{name}", weights, tags)
    tag = models.get_model_weights(name).DEFAULT if weights == "imagenet" else tags[weights]
    try:
        state = tag.get_state_dict(progress=False, check_hash=True)
    except Exception as error:
        raise InvalidInput(_not_loaded(f"torchvision:{name}", weights, error)) from error
    load_weights(model, _fitted(model, state, stem, in_channels), num_classes=num_classes, source=f"{name}.{tag.name}")
    return model


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
    return _with_file(model, weights, num_classes)


def refuse_smp(
    name: str, num_classes: int, in_channels: int, weights: str | None, options: dict[str, Any]
) -> nn.Module:
    """Say that segmentation networks are not there yet.

    Args:
        name: Name in segmentation-models-pytorch.
        num_classes: Not used.
        in_channels: Not used.
        weights: Not used.
        options: Not used.

    Raises:
        InvalidInput: Always.
    """
    raise InvalidInput(
        f"model 'smp:{name}': segmentation networks (extra 'pathex[seg]') are not in this version;"
        " use package.module:factory"
    )


def is_file(weights: str) -> bool:
    """Whether a text names a file of weights, there or not, rather than a tag.

    Args:
        weights: A path or a tag.

    Returns:
        True for existing files and for texts that look like one.
    """
    path = Path(weights).expanduser()
    return path.is_file() or path.suffix in _FILE_ENDINGS or len(path.parts) > 1


def _with_file(model: nn.Module, weights: str | None, num_classes: int) -> nn.Module:
    if weights is not None:
        load_weights(model, read_weights(Path(weights).expanduser()), num_classes=num_classes, source=weights)
    return model


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

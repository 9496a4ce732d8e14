"""Which part of a network is its head (classifier or decoder), and how classifiers fit the encoder beside a decoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.masks import own_module, prunable_weights

CLASSIFIERS = ("fc", "classifier", "head", "heads")
"""What torchvision and most others call the classifier of a network."""


def head_parameters(model: nn.Module, num_classes: int | None = None) -> list[str]:
    """Names of the parameters of a network's head, which a training may give a learning rate of its own.

    The head is, of these, the first that the network has: everything but the encoder (networks of
    segmentation-models-pytorch); the classifier that the network names itself (``get_classifier`` of timm); a part
    called ``fc``, ``classifier``, ``head`` or ``heads``; the last prunable layer, of those with ``num_classes`` outputs
    if there are any.

    Returns:
        Names, in the order of ``named_parameters``.

    Raises:
        InvalidInput: If there are none.

    Examples:
        >>> import pathex
        >>> head_parameters(pathex.models.create("resnet20", width=4))
        ['fc.weight', 'fc.bias']
    """
    model = own_module(model)
    heads = head_modules(model, num_classes)
    names = [name for name, _ in model.named_parameters() if is_inside(name, heads)]
    if not names:
        raise InvalidInput(f"no head found in {type(model).__name__}: no classifier and no prunable layer")
    return names


def head_modules(model: nn.Module, num_classes: int | None = None) -> list[str]:
    """Names of the modules that make up the head; ``""`` is the network itself."""
    if is_segmentation(model):
        return [name for name, _ in model.named_children() if name != "encoder"]
    get_classifier = getattr(model, "get_classifier", None)
    own = get_classifier() if callable(get_classifier) else None
    own = own if isinstance(own, (tuple, list)) else [own]
    named = [name for name, module in model.named_modules() if any(module is part for part in own)]
    usual = [name for name in CLASSIFIERS if isinstance(getattr(model, name, None), nn.Module)]
    for heads in (named, *([name] for name in usual)):
        filled = [name for name in heads if any(True for _ in model.get_submodule(name).parameters())]
        if filled:
            return filled
    return _last_layer(model, num_classes)


def is_segmentation(model: nn.Module) -> bool:
    """Whether a network has the parts of those of segmentation-models-pytorch."""
    parts = ("encoder", "decoder", "segmentation_head")
    return all(isinstance(getattr(model, part, None), nn.Module) for part in parts)


def is_inside(name: str, modules: list[str]) -> bool:
    """Whether a parameter or buffer belongs to one of some modules."""
    return any(not module or name.startswith(f"{module}.") for module in modules)


def _last_layer(model: nn.Module, num_classes: int | None) -> list[str]:
    try:
        weights = prunable_weights(model)
    except InvalidInput:  # nothing to prune: no layer
        return []
    fitting = [name for name, weight in weights.items() if num_classes in {None, weight.shape[0]}]
    return [(fitting or list(weights))[-1].rpartition(".")[0]]


def smp_package(name: str) -> Any:
    """The package segmentation-models-pytorch, which model ``name`` needs."""
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise InvalidInput(
            f"model {name!r} needs segmentation-models-pytorch, which is not installed: pip install 'pathex[seg]'"
        ) from error
    return segmentation_models_pytorch


def timm_tags(name: str) -> list[str]:
    """Tags of the weights that timm has for an architecture."""
    import timm

    return [full.partition(".")[2] for full in timm.list_pretrained(f"{name.partition('.')[0]}.*")]


def timm_network(model: nn.Module) -> nn.Module | None:
    """The timm classifier that a network is, or whose layers its encoder ``tu-NAME`` has (without numbers)."""
    if type(model).__module__.startswith("timm."):
        return model
    encoder = getattr(model, "encoder", None)
    name = getattr(encoder, "name", None)
    if not is_segmentation(model) or not isinstance(name, str) or not hasattr(encoder, "model"):
        return None
    import timm

    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return timm.create_model(name)
        except Exception:  # a few networks compute with numbers while they are built
            return timm.create_model(name)


def place_in_encoder(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the tensors of a classification network to those of the encoder of ``model``."""
    own = set(model.state_dict())
    whole = timm_network(model)
    behind = set() if whole is None else set(whole.state_dict())
    placed: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name, tensor in tensors.items():
        # timm's feature networks name the parts of a sequence with an underline: stages.0 is stages_0.
        targets = (f"encoder.{name}", f"encoder.model.{name}", f"encoder.model.{name.replace('.', '_', 1)}")
        target = next((target for target in targets if target in own), None)
        if target is not None:
            placed[target] = tensor
        elif name in behind or (whole is None and name.partition(".")[0] in CLASSIFIERS):
            dropped.append(name)
        else:
            placed[name] = tensor
    return placed, dropped

"""Which part of a network is its head: the classifier, or the decoder of a segmentation network."""

from collections.abc import Iterator

from torch import nn

from pathex.errors import InvalidInput
from pathex.prunable import own_module, prunable_weights

__all__ = ["CLASSIFIERS", "head_modules", "head_parameters", "is_inside", "is_segmentation"]

CLASSIFIERS = ("fc", "classifier", "head", "heads")
"""What torchvision and most others call the classifier of a network."""
_SEGMENTATION = ("encoder", "decoder", "segmentation_head")


def head_parameters(model: nn.Module, num_classes: int | None = None) -> list[str]:
    """Names of the parameters of a network's head, which a training may give a learning rate of its own.

    The head is, of these, the first that the network has: everything but the encoder (networks of
    segmentation-models-pytorch); the classifier that the network names itself (``get_classifier`` of timm); a part
    called ``fc``, ``classifier``, ``head`` or ``heads``; the last prunable layer.

    Args:
        model: The network.
        num_classes: Where the last prunable layer decides: the last that gives this many outputs.

    Returns:
        Names, in the order of ``named_parameters``.

    Raises:
        InvalidInput: If the network has no head that could be found.

    Example:
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
    """Names of the modules that make up the head; see :func:`head_parameters`.

    Args:
        model: The network.
        num_classes: As in :func:`head_parameters`.

    Returns:
        Names of modules; ``""`` is the network itself, and the list is empty if there is no head.
    """
    if is_segmentation(model):
        return [name for name, _ in model.named_children() if name != "encoder"]
    named = set(_own_classifiers(model))
    found = [name for name, module in model.named_modules() if module in named and _has_parameters(module)]
    if found:
        return found
    for name in CLASSIFIERS:
        part = getattr(model, name, None)
        if isinstance(part, nn.Module) and _has_parameters(part):
            return [name]
    return _last_layer(model, num_classes)


def is_segmentation(model: nn.Module) -> bool:
    """Whether a network is built as those of segmentation-models-pytorch.

    Args:
        model: The network.

    Returns:
        True if it has an encoder, a decoder and a segmentation head.
    """
    return all(isinstance(getattr(model, part, None), nn.Module) for part in _SEGMENTATION)


def is_inside(name: str, modules: list[str]) -> bool:
    """Whether a tensor belongs to one of some modules.

    Args:
        name: Name of a parameter or buffer.
        modules: Names of modules.

    Returns:
        True if it does.
    """
    return any(not module or name.startswith(f"{module}.") for module in modules)


def _own_classifiers(model: nn.Module) -> Iterator[nn.Module]:
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if callable(get_classifier) else None
    for part in found if isinstance(found, (tuple, list)) else (found,):
        if isinstance(part, nn.Module):
            yield part


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _last_layer(model: nn.Module, num_classes: int | None) -> list[str]:
    try:
        weights = prunable_weights(model)
    except InvalidInput:  # nothing to prune: no layer
        return []
    names = [name for name, weight in weights.items() if num_classes is None or weight.shape[0] == num_classes] or list(
        weights
    )
    return [names[-1].rpartition(".")[0]]

"""Which part of a network is its head: the classifier, or the decoder of a segmentation network."""

from torch import nn

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

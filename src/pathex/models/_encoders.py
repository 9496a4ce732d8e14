"""Segmentation networks of segmentation-models-pytorch, and how the weights of a classifier fit their encoders."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.models._heads import CLASSIFIERS, is_segmentation

__all__ = ["place_in_encoder", "smp_package", "timm_network"]


def smp_package(name: str) -> Any:
    """The package segmentation-models-pytorch.

    Args:
        name: The model it is needed for, for the message.

    Returns:
        The module.

    Raises:
        InvalidInput: If it is not installed.
    """
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise InvalidInput(
            f"model {name!r} needs segmentation-models-pytorch, which is not installed: pip install 'pathex[seg]'"
        ) from error
    return segmentation_models_pytorch


def timm_network(model: nn.Module) -> nn.Module | None:
    """The timm classifier that a network is, or whose layers its encoder has.

    Args:
        model: A network of timm, or one of segmentation-models-pytorch.

    Returns:
        The network itself if timm made it; for an encoder ``tu-NAME`` the whole network NAME, whose tensors hold no
        numbers; None for others.
    """
    if type(model).__module__.startswith("timm."):
        return model
    encoder = getattr(model, "encoder", None)
    name = getattr(encoder, "name", None)
    inside = getattr(encoder, "model", None)
    if not is_segmentation(model) or not isinstance(name, str) or not isinstance(inside, nn.Module):
        return None
    import timm

    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return timm.create_model(name)
        except Exception:  # a few networks compute with numbers while they are built
            return timm.create_model(name)


def place_in_encoder(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Give the tensors of a classification network the names that they have in an encoder.

    Args:
        model: A network of segmentation-models-pytorch.
        tensors: Tensors by their names in the classification network.

    Returns:
        The tensors by their names in ``model``, and the names of those that an encoder has no use for: the classifier,
        and whatever else of timm's network lies behind the features. Tensors that are neither keep their names.
    """
    own = set(model.state_dict())
    whole = timm_network(model)
    known = set() if whole is None else set(whole.state_dict())
    placed: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name, tensor in tensors.items():
        # timm's feature networks name the parts of a sequence with an underline: stages.0 is stages_0.
        targets = (f"encoder.{name}", f"encoder.model.{name}", f"encoder.model.{name.replace('.', '_', 1)}")
        target = next((target for target in targets if target in own), None)
        if target is not None:
            placed[target] = tensor
        elif name in known or (whole is None and name.partition(".")[0] in CLASSIFIERS):
            dropped.append(name)
        else:
            placed[name] = tensor
    return placed, dropped

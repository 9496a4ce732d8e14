"""Encoders of segmentation-models-pytorch, and how the weights of a classifier fit them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.models.heads import CLASSIFIERS, is_segmentation


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

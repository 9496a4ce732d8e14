"""What a ticket is worth without one of its parts: the places of its weights, their values, or their signs.

Frankle, Dziugaite, Roy, Carbin, "Pruning Neural Networks at Initialization: Why Are We Missing the Mark?" (ICLR 2021),
and the code released with the PX paper. Layers keep their number of weights in all of them. Draws come from generators
on the CPU that depend on the seed and the name of the layer only.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput, check_integer
from pathex.masks import Mask, own_module, prunable_weights
from pathex.scores import generator

# Each ablation has its own stream, so that none goes with another, or with a scorer of the same seed.
_SHUFFLE, _FLIP = 0x5A17, 0x5A19


def shuffled(mask: Mask, seed: int) -> Mask:
    """Move the kept places of a mask at random within each layer.

    Returns:
        A new mask with the same counts and metadata.

    Examples:
        >>> mask = Mask({"weight": torch.eye(4, dtype=torch.bool)})
        >>> moved = shuffled(mask, seed=0)
        >>> moved == mask, moved.counts() == mask.counts()
        (False, True)
    """
    entries, seed = {}, check_integer("seed", seed, 0)
    for name, entry in mask.items():
        order = torch.randperm(entry.numel(), generator=generator(seed, _SHUFFLE, *name.encode()))
        entries[name] = entry.flatten()[order].view(entry.shape)
    return Mask(entries, mask.metadata)


def flipped(model: nn.Module, seed: int, *, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The prunable weights of a model, or those named, by name, each with its sign flipped with probability 1/2."""
    flipped_weights, seed = {}, check_integer("seed", seed, 0)
    for name, weight in _weights(model, names).items():
        flip = torch.rand(weight.shape, generator=generator(seed, _FLIP, *name.encode())) < 0.5
        flipped_weights[name] = torch.where(flip.to(weight.device), -weight, weight)
    return flipped_weights


def _weights(model: nn.Module, names: Iterable[str] | None) -> Mapping[str, Tensor]:
    own = own_module(model)
    chosen = list(prunable_weights(own) if names is None else names)
    parameters = dict(own.named_parameters())
    if unknown := [name for name in chosen if name not in parameters]:
        raise InvalidInput(f"{type(own).__name__} has no parameter named {unknown[0]!r}")
    return {name: parameters[name].detach() for name in chosen}

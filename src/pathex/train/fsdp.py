"""Weights spread over processes (FSDP, second generation), and whole tensors in their checkpoints."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathex.distributed import in_one_piece, is_sharded

_LEAST = 2**20
"""Parameters of a unit; fewer are not worth a message of their own."""


def units(model: nn.Module, least: int = _LEAST) -> list[nn.Module]:
    """The modules whose weights are gathered together when they are used: the blocks of a network."""
    uses = Counter(_own(model))
    found: list[nn.Module] = []
    taken: set[nn.Parameter] = set()
    blocks = [
        child
        for module in model.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for child in module.children()
        if not isinstance(child, nn.ModuleList | nn.ModuleDict)
    ]
    for block in reversed(list(dict.fromkeys(blocks))):
        own = Counter(_own(block))
        left = [weight for weight in block.parameters() if weight not in taken]
        shared = any(uses[weight] != count for weight, count in own.items())
        if not shared and sum(weight.numel() for weight in left) >= least:
            found.append(block)
            taken.update(own)
    return found


def _own(model: nn.Module) -> list[nn.Parameter]:
    """Every use of a parameter by a module."""
    return [weight for _, weight in model.named_parameters(remove_duplicate=False)]


def shard(model: nn.Module, mesh: Any) -> nn.Module:
    """Spread the weights of a network over processes, in place; names and results stay as they are."""
    from torch.distributed.fsdp import fully_shard

    model.to(memory_format=torch.contiguous_format)  # weights in another layout are refused
    for module in [*units(model), model]:
        fully_shard(module, mesh=mesh["data_parallel"])
    return model


def whole(state: Any, *, keep: bool = True) -> Any:
    """A state with each sharded tensor in one piece on the CPU; every process calls it alike."""
    if isinstance(state, Mapping):
        return {name: whole(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [whole(value, keep=keep) for value in state]
    if isinstance(state, Tensor) and is_sharded(state):
        full = in_one_piece(state)
        return full.cpu() if keep else None
    return state

"""Linear layers of two kept weights in every four, on the sparse tensor cores of a GPU."""

import torch
from torch import nn
from torch.sparse import to_sparse_semi_structured

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import copied
from pathex.masks import Mask, make_permanent, own_module

_DTYPES = (torch.float16, torch.bfloat16)


def semi_structured(model: nn.Module, mask: Mask) -> nn.Module:
    """A copy for inference whose linear layers compute two of every four products (`torch.sparse`).

    Args:
        model: A network in float16 or bfloat16 on a GPU of compute capability 8.0 or more; left as it is.
        mask: That of a ticket with ``structure="2:4"``.

    Returns:
        The copy, zeros in place; layers of other kinds, and of sizes that the GPU has no kernel for, stay dense.

    Raises:
        InvalidInput: If no linear layer has a mask of this structure.
        UnsupportedOperation: If the weights are elsewhere or in another precision.
    """
    network = make_permanent(copied(own_module(model)), mask).eval()
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    fitting = [module for name, module in layers if _is_two_of_four(mask, f"{name}.weight" if name else "weight")]
    if not fitting:
        raise InvalidInput("no linear layer keeps two of every four weights: prune with structure='2:4'")
    for module in fitting:
        weight = module.weight
        if weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < (8, 0):
            raise UnsupportedOperation(f"2:4 needs a GPU of compute capability 8.0 or more, not {weight.device.type}")
        if weight.dtype not in _DTYPES:
            raise UnsupportedOperation(f"2:4 needs weights in float16 or bfloat16, not {weight.dtype}")
        if weight.shape[0] % 32 == 0 and weight.shape[1] % 64 == 0:
            module.weight = nn.Parameter(to_sparse_semi_structured(weight.detach()), requires_grad=False)
    return network


def _is_two_of_four(mask: Mask, name: str) -> bool:
    entry = mask.get(name)
    return entry is not None and entry.shape[1] % 4 == 0 and bool((entry.unflatten(1, (-1, 4)).sum(-1) <= 2).all())

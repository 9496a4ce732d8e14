"""Which weights lie on a path, by taking one after another out of a network whose numbers are all positive.

What counts is the network without its additive constants and with every gate open. Where weights and input are
positive, nothing cancels: a weight lies on a path if and only if the output changes without it.
"""

import copy

import torch
from torch import nn
from torch.func import functional_call

_GATES = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Dropout)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def _open_form(module):
    if isinstance(module, (*_GATES, *_NORMS)):
        return nn.Identity()
    if isinstance(module, nn.MaxPool2d):
        # Passes its whole window.
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode, True, 1)
    if isinstance(module, nn.Hardsigmoid):  # never zero, and without its flat ends
        return nn.Sigmoid()
    if isinstance(module, nn.Conv2d):  # the mask stands in the place of a computed weight
        module.__class__ = nn.Conv2d
    return module


def opened(model, seed=0):
    """A copy in float64 with gates open, norms that do nothing, positive weights and no additive constants."""
    twin = copy.deepcopy(model).double().eval()
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _open_form(child))
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, entry in twin.named_parameters():
            draw = (0.5 + torch.rand(entry.shape, generator=source, dtype=torch.float64)) / max(entry[0].numel(), 1)
            entry.copy_(torch.zeros_like(entry) if name.endswith("bias") else draw)
    return twin


def by_deletion(model, mask, shape):
    """For each masked weight a bool tensor: kept, and the output changes without it."""
    twin = opened(model)
    x = 0.5 + torch.rand(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = {name: twin.get_parameter(name).detach() * keep for name, keep in mask.items()}
    found = {name: torch.zeros_like(keep) for name, keep in mask.items()}
    with torch.no_grad():
        whole = functional_call(twin, kept, (x,))
        for name, keep in mask.items():
            for index in keep.nonzero().tolist():
                without = kept[name].clone()
                without[tuple(index)] = 0
                changed = not torch.equal(functional_call(twin, kept | {name: without}, (x,)), whole)
                found[name][tuple(index)] = changed
    return found

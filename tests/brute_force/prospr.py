"""ProsPr by its definition: training unrolled on one graph, and the derivative of its last loss by the mask."""

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from brute_force.cases import prunable


def prospr(model, parts, lr, momentum=0.0, mask=None):
    """|d loss / d mask| of the weights that are there. Each part but the last is a step of gradient descent.

    The model runs in the mode it is in; buffers are not kept.
    """
    state = {name: entry.detach().clone().requires_grad_() for name, entry in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    keep = {name: torch.ones_like(state[name]) if mask is None else mask[name].double() for name in prunable(model)}
    entries = {name: kept.detach().clone().requires_grad_() for name, kept in keep.items()}
    state |= {name: entry * state[name] for name, entry in entries.items()}
    velocity = {name: torch.zeros_like(entry) for name, entry in state.items()}

    def loss(x, y):
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            return F.cross_entropy(functional_call(model, state | buffers, (x,)), y)

    for x, y in parts[:-1]:
        gradient = torch.autograd.grad(loss(x, y), list(state.values()), create_graph=True)
        for name, part in zip(state, gradient, strict=True):
            velocity[name] = momentum * velocity[name] + part * keep.get(name, 1)
        state = {name: entry - lr * velocity[name] for name, entry in state.items()}
    found = torch.autograd.grad(loss(*parts[-1]), list(entries.values()))
    return {name: (part * keep[name]).abs() for name, part in zip(entries, found, strict=True)}

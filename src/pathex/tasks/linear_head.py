"""The linear layer at the end of a network: found, fitted by ridge regression, replaced."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.tasks.ridge import RidgeMoments
from pathex.train import Batches, memory_format

Head = tuple[Tensor, Tensor | None]
"""Weight (K, D) of a head, and its bias (K,) if the layer has one."""


def head_layer(network: nn.Module, example: Tensor) -> str | None:
    """Name of the linear layer on (B, D) whose outputs are those of a network in eval mode, None if there is none."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, inputs, outputs: found.update({name: (inputs[0], outputs)})

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            outputs = network(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(outputs, Tensor):
        return None
    # The same numbers in the same place, not only equal: two heads of zeros are equal, and so is their mean.
    for name, (inputs, own) in found.items():
        if inputs.ndim == 2 and own.shape == outputs.shape and own.data_ptr() == outputs.data_ptr():
            return name
    return None


@torch.no_grad()
def fit_head(network: nn.Module, name: str, images: Batches, classes: int, alpha: float, *, fabric: Any = None) -> Head:
    """The ridge regression from the inputs of a layer to one-hot labels, in one pass over all processes."""
    layer = linear(network, name)
    moments = RidgeMoments(layer.in_features, classes, layer.weight.device)
    layout, seen = memory_format(network), list[Tensor]()
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for inputs, labels in images.in_order():
            network(inputs.to(layer.weight.dtype).contiguous(memory_format=layout))
            moments.add(seen.pop(), F.one_hot(labels, classes))
    finally:
        hook.remove()
    if fabric is not None and fabric.world_size > 1:
        moments.sums = fabric.all_reduce(moments.sums, reduce_op="sum")
    weight, bias = moments.solve(alpha, intercept=layer.bias is not None)
    return weight.to(layer.weight), None if layer.bias is None else bias.to(layer.weight)


def install_head(network: nn.Module, name: str, head: Head, *, trained: bool) -> None:
    """Replace the parameters of a layer, maybe by those for another number of classes."""
    layer, (weight, bias) = linear(network, name), head
    layer.out_features = len(weight)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=trained)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=trained)


def linear(network: nn.Module, name: str) -> nn.Linear:
    """A linear layer by name."""
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer

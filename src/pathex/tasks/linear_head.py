"""The linear layer at the end of a network: found, fitted by ridge regression, replaced."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.train import Batches, memory_format

Head = tuple[Tensor, Tensor | None]
"""Weight (K, D) of a head, and its bias (K,) if the layer has one."""


def ridge_sums(features: Tensor, targets: Tensor) -> Tensor:
    """Products of all pairs of columns of [features, 1, targets] (B, D + 1 + K), summed over images."""
    # In float64, so that batches and their order play no part beyond its rounding.
    ones = features.new_ones(len(features), 1, dtype=torch.float64)
    rows = torch.cat([features.double(), ones, targets.double()], dim=1)
    return rows.T @ rows


def solve_ridge(sums: Tensor, size: int, alpha: float, *, intercept: bool = True) -> tuple[Tensor, Tensor]:
    """W, float64 (K, D = size), and b (K,) on the CPU that minimise ``sum_n |y_n - W x_n - b|^2 + alpha |W|^2``."""
    # A sum over images, not their mean, and b is not penalised: the convention of scikit-learn's Ridge.
    sums = sums.cpu()
    if not torch.isfinite(sums).all():
        raise InvalidInput("ridge regression: the features of the images are not finite")
    images = sums[size, size]
    if not images:
        raise InvalidInput("ridge regression: there are no images")
    gram, cross = sums[:size, :size], sums[:size, size + 1 :]
    features, targets = sums[:size, size] / images, sums[size, size + 1 :] / images
    if intercept:
        gram = gram - images * torch.outer(features, features)
        cross = cross - images * torch.outer(features, targets)
    penalised = gram + alpha * torch.eye(size, dtype=gram.dtype)
    # Beside features of 1e10 the penalty is lost in rounding: by singular values the solution stays finite.
    weights = torch.linalg.lstsq(penalised, cross, driver="gelsd").solution.T
    return weights, (targets - weights @ features) * float(intercept)


def head_layer(network: nn.Module, example: Tensor) -> str | None:
    """Name of the linear layer on (B, D) whose outputs are those of a network in eval mode, None if there is none."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    hooks = [
        module.register_forward_hook(lambda _, inputs, outputs, name=name: found.update({name: (inputs[0], outputs)}))
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
    side = layer.in_features + 1 + classes
    sums = torch.zeros(side, side, dtype=torch.float64, device=layer.weight.device)
    layout, seen = memory_format(network), list[Tensor]()
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for inputs, labels in images.in_order():
            network(inputs.to(layer.weight.dtype).contiguous(memory_format=layout))
            sums += ridge_sums(seen.pop(), F.one_hot(labels, classes))
    finally:
        hook.remove()
    if fabric is not None and fabric.world_size > 1:
        sums = fabric.all_reduce(sums, reduce_op="sum")
    weight, bias = solve_ridge(sums, layer.in_features, alpha, intercept=layer.bias is not None)
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

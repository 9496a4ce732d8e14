"""Modules with fewer channels: tensors cut, attributes that follow."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathex.graph import first_names

Recipe = dict[str, Any]
"""What was cut, as JSON: ``kept`` places by tensor and dimension, modules with new ``biases``, ``attributes``."""

_ATTRIBUTES: Mapping[type[nn.Module], Mapping[str, int]] = {
    nn.Linear: {"out_features": 0, "in_features": 1},
    nn.modules.batchnorm._NormBase: {"num_features": 0},
    nn.PReLU: {"num_parameters": 0},
}


def cut(tensor: Tensor, kept: Mapping[str, list[int]]) -> Tensor:
    """A tensor without the places that go, by dimension."""
    for dim, places in kept.items():
        tensor = tensor.index_select(int(dim), torch.tensor(places, device=tensor.device))
    return tensor.contiguous()


@torch.no_grad()
def carve(model: nn.Module, recipe: Recipe, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Cut a model in place; ``tensors`` stand in for its parameters, in the sizes before."""
    for path in recipe["biases"]:
        module = model.get_submodule(path)
        weight = module.get_parameter("weight")
        module.bias = nn.Parameter(weight.new_zeros(_outputs(module)))
    first, made = first_names(model), {}
    for path, module in list(model.named_modules()):
        before = _weight(module)
        parts = (module.named_parameters, module.named_buffers)
        for own, entry in [pair for named in parts for pair in named(recurse=False, remove_duplicate=False)]:
            name, held = first[f"{path}.{own}" if path else own], module._buffers
            if name not in made and own in held and not recipe["kept"].get(name):
                made[name] = entry
            if name not in made:
                data = cut(tensors.get(name, entry.detach()).to(entry), recipe["kept"].get(name, {}))
                if entry.dim() == 4 and not entry.is_contiguous():
                    data = data.contiguous(memory_format=torch.channels_last)
                made[name] = nn.Parameter(data, entry.requires_grad) if isinstance(entry, nn.Parameter) else data
            (held if own in held else module._parameters)[own] = made[name]
        _refit(module, before)
    for path, attributes in recipe["attributes"].items():
        for attribute, size in attributes.items():
            setattr(model.get_submodule(path), attribute, size)
    return model


def _weight(module: nn.Module) -> Tensor | None:
    return dict(module.named_parameters(recurse=False)).get("weight")


def _outputs(module: Any) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _refit(module: Any, before: Tensor | None) -> None:
    """Let the attributes of a module say the sizes of its weight."""
    weight = _weight(module)
    if isinstance(module, nn.modules.conv._ConvNd):
        _refit_convolution(module, before)
    for kind, attributes in _ATTRIBUTES.items():
        if isinstance(module, kind) and weight is not None:
            for attribute, dim in attributes.items():
                setattr(module, attribute, weight.shape[dim])
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.num_features = len(module.running_mean)


def _refit_convolution(module: Any, before: Tensor | None) -> None:
    weight = _weight(module)
    if weight is None or before is None:
        return
    if module.groups > 1:
        module.groups = module.groups * weight.shape[0] // before.shape[0]
    sizes = (weight.shape[0], weight.shape[1] * module.groups)
    module.in_channels, module.out_channels = sizes if module.transposed else sizes[::-1]

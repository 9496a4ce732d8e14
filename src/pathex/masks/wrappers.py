"""What training code wraps around a network or a part of it: masks have the names of the plain network."""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from torch import nn
from torch.optim.swa_utils import AveragedModel

from pathex.errors import InvalidInput

_Value = TypeVar("_Value")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# Of torch.compile and of Lightning Fabric, whose classes need not be imported to know them.
_PARTS = ("_orig_mod", "_forward_module")


def own_module(model: nn.Module) -> nn.Module:
    """The plain network, with the names of masks, behind wrappers of it and of its parts, or a view that shares all."""
    # The view has shallow copies of the modules on the way to a wrapped part: their parameters and hooks are the same.
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, not {type(model).__name__} {model!r:.60}")
    return _plain(model, {})


def _plain(model: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    own = unwrapped(model)
    if own not in made:
        made[own] = own
        parts = {name: None if part is None else _plain(part, made) for name, part in own._modules.items()}
        if any(parts[name] is not part for name, part in own._modules.items()):
            made[own] = view = copy.copy(own)
            view._modules = parts
    return made[own]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module behind the wrappers right around it; `InvalidInput` if they flatten weights together."""
    while True:
        parts = module._modules
        inside = parts["module"] if isinstance(module, _WRAPPERS) else None
        for name in _PARTS:
            if name in parts:  # parts of a scripted module have no get
                inside = parts[name]
        if inside is None:
            break
        module = inside
    if type(module).__name__ == "FullyShardedDataParallel":
        raise InvalidInput("FullyShardedDataParallel flattens weights together: prune before, and train by fully_shard")
    return module


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module that has this name in the plain network, if there is one."""
    module = unwrapped(model)
    for part in path.split(".") if path else ():
        found = module._modules.get(part)
        if found is None:
            return None
        module = unwrapped(found)
    return module


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name that a model has for its parameters, and the first one for the same parameter."""
    first = {p: name for name, p in model.named_parameters()}
    return {name: first[p] for name, p in model.named_parameters(remove_duplicate=False)}


def without_wrappers(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Tensors of a state dict without what wrappers put into their names, as far as the names alone tell."""
    tensors = {_without(name, _PARTS): value for name, value in tensors.items()}
    # AveragedModel has a counter beside its module.
    while names := [name for name in tensors if name != "n_averaged"]:
        if not all(name.startswith("module.") for name in names):
            break
        tensors = {name.removeprefix("module."): tensors[name] for name in names}
    return tensors


def fitted(tensors: Mapping[str, _Value], own: Collection[str]) -> dict[str, _Value]:
    """Tensors by the names of a network: without wrappers, and without one prefix where nothing fits with it."""
    places = {_without(name, (*_PARTS, "module")): name for name in own}
    short = {name: _without(name, (*_PARTS, "module")) for name in tensors}
    if not places.keys() & set(short.values()):
        prefix = _excess(short.values(), places)
        short = {name: bare.removeprefix(prefix) for name, bare in short.items()}
    found = {name if name in own else places.get(bare, bare): tensors[name] for name, bare in short.items()}
    return found if len(found) == len(tensors) and found.keys() & set(own) else dict(tensors)


def _excess(given: Iterable[str], places: Collection[str]) -> str:
    """The one prefix behind which names are those of a network, or ``""``."""
    parts = [name.split(".") for name in given]
    cuts = [(".".join(each[:i]), ".".join(each[i:])) for each in parts for i in range(1, len(each))]
    behind = {f"{before}." for before, inner in cuts if inner in places}
    shortest = min(behind, key=len, default="")
    # Names of a part may be those of the whole by chance; a second network beside it is no such part.
    return shortest if all(prefix.startswith(shortest) for prefix in behind) else ""


def _without(name: str, parts: Iterable[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts)

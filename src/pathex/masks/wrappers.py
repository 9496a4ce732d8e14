"""What training code wraps around a network or a part of it: masks have the names of the plain network."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

from torch import nn
from torch.optim.swa_utils import AveragedModel

from pathex.errors import InvalidInput

_Value = TypeVar("_Value")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
# Of torch.compile and of Lightning Fabric, whose classes need not be imported to know them.
_PARTS = ("_orig_mod", "_forward_module")


def own_module(model: nn.Module) -> nn.Module:
    """The plain network, with the names of masks, behind what wraps it or parts of it.

    Looked through are ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel``, ``torch.compile`` and modules
    of Lightning Fabric, in any order.

    Returns:
        The model itself where nothing in it is wrapped. Else a view: the modules on the way to a wrapped part are
        shallow copies, which share parameters, buffers and hooks with the model's own.
    """
    return _plain(model, {}) if isinstance(model, nn.Module) else model


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
        if type(module).__name__ == "FullyShardedDataParallel":
            raise InvalidInput(
                "FullyShardedDataParallel flattens weights together: prune before, and train by fully_shard"
            )
        names = ("module",) if isinstance(module, _WRAPPERS) else _PARTS
        inner = next((module._modules[name] for name in names if name in module._modules), None)
        if inner is None:
            return module
        module = inner


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
    # Of AveragedModel; there a module "module" is no part of the network's own.
    counters = {"n_averaged"} if "n_averaged" in tensors and len(tensors) > 1 else set()
    while tensors and all(name.startswith("module.") for name in tensors if name not in counters):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items() if name not in counters}
        counters = set()
    return tensors


def fitted(tensors: Mapping[str, _Value], own: Iterable[str]) -> dict[str, _Value]:
    """Tensors by the names of a network: without wrappers, and without one prefix where nothing fits with it."""
    places = {_without(name, (*_PARTS, "module")): name for name in own}
    given = {_without(name, (*_PARTS, "module")): name for name in tensors}
    prefix = "" if places.keys() & given.keys() else _excess(given, places)
    if prefix is None or len(given) < len(tensors):
        return dict(tensors)
    short = {name: bare.removeprefix(prefix) for bare, name in given.items()}
    return {places.get(short[name], short[name] if prefix else name): value for name, value in tensors.items()}


def _excess(given: Iterable[str], places: Collection[str]) -> str | None:
    """The prefix, of all names or the only one, behind which some are those of a network."""
    behind = {name[: -len(inner)] for name in given for inner in _inner(name) if inner in places}
    common = [prefix for prefix in behind if all(name.startswith(prefix) for name in given)]
    return min(common or (behind if len(behind) == 1 else ()), key=len, default=None)


def _inner(name: str) -> Iterator[str]:
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _without(name: str, parts: Iterable[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts)

"""Which weights of a model are pruned: those of convolutions and linear layers, and of what the user adds."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from pathex.errors import InvalidInput

__all__ = ["Selector", "own_module", "prunable_weights"]

Selector = str | type | nn.Module
"""A glob over module or parameter names, a module class, or a module of the model."""

_PRUNABLE = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def own_module(model: nn.Module) -> nn.Module:
    """The module behind what ``torch.compile`` returned, which has the names that masks use.

    Args:
        model: A model, compiled or not.

    Returns:
        The module itself.
    """
    own = getattr(model, "_orig_mod", model)
    return own if isinstance(own, nn.Module) else model


def prunable_weights(
    model: nn.Module, *, ignore: Sequence[Selector] = (), prunable: Sequence[Selector] = ()
) -> dict[str, Tensor]:
    """The prunable weights of a model, by parameter name.

    Args:
        model: The model.
        ignore: Modules whose weights are left dense: globs over module or parameter names, classes, or modules.
        prunable: Modules that are prunable beside convolutions and linear layers, likewise.

    Returns:
        Name to parameter, in the order of ``named_parameters``; a weight that is shared appears once, and not at all
        if one of its modules is ignored. Weights that are parametrizations or have no shape yet raise
        `pathex.errors.InvalidInput`.

    Raises:
        InvalidInput: If nothing is left to prune or a selector matches nothing.
    """
    ignore, prunable = _listed(ignore), _listed(prunable)
    owners = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Tensor] = {}
    dense: set[str] = set()
    for path, module in model.named_modules():
        if not (isinstance(module, _PRUNABLE) or _matches(prunable, path, module)):
            continue
        weight = module._parameters.get("weight")
        if _matches(ignore, path, module):
            dense |= set() if weight is None else {owners[id(weight)]}
        else:
            _check_plain(path, module, weight)
            if weight is not None and weight.is_floating_point():
                found.setdefault(owners[id(weight)], weight)
    found = {name: weight for name, weight in found.items() if name not in dense}
    for kind, selectors in (("ignore", ignore), ("prunable", prunable)):
        for selector in selectors:
            if not any(_matches([selector], path, module) for path, module in model.named_modules()):
                raise InvalidInput(f"{kind}: {_shown(selector)} matches no module of {type(model).__name__}")
    if not found:
        raise InvalidInput(f"{type(model).__name__} has nothing to prune: no convolution or linear weight is selected")
    return found


def _listed(selectors: Selector | Sequence[Selector]) -> Sequence[Selector]:
    return [selectors] if isinstance(selectors, (str, type, nn.Module)) else selectors


def _check_plain(path: str, module: nn.Module, weight: Tensor | None) -> None:
    if parametrize.is_parametrized(module, "weight") or (weight is None and isinstance(module, _PRUNABLE)):
        raise InvalidInput(f"the weight of {path!r} is a parametrization; remove it first, or ignore the module")
    if weight is not None and nn.parameter.is_lazy(weight):
        raise InvalidInput(f"the weight of {path!r} has no shape yet; run the model once first")


def _matches(selectors: Iterable[Any], path: str, module: nn.Module) -> bool:
    for selector in selectors:
        if isinstance(selector, str):
            if fnmatchcase(path, selector) or fnmatchcase(f"{path}.weight".lstrip("."), selector):
                return True
        elif isinstance(selector, type):
            if isinstance(module, selector):
                return True
        elif isinstance(selector, nn.Module):
            if module is selector or any(module is part for part in selector.modules()):
                return True
        else:
            raise InvalidInput(f"a selector is a glob, a module class or a module, not {_shown(selector)}")
    return False


def _shown(selector: object) -> str:
    return repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", type(selector).__name__)

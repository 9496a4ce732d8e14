"""Which weights of a model are pruned: those of convolutions, linear layers and attention, and what the user adds."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pathex.distributed import is_sharded
from pathex.errors import InvalidInput

Selector = str | type | nn.Module
"""A glob over names of modules or parameters, a module class, or a module of the model."""
Selectors = Sequence[Selector]

_PRUNABLE = (nn.Linear, nn.modules.conv._ConvNd)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable_weights(model: nn.Module, *, ignore: Selectors = (), prunable: Selectors = ()) -> dict[str, Tensor]:
    """The prunable weights of a model, by parameter name.

    These are the weights of convolutions and linear layers (subclasses included) and the input projections of
    ``nn.MultiheadAttention``, whose output projection is a linear layer.

    Args:
        model: The model.
        ignore: What is left dense: globs over names of modules or parameters, module classes, or modules.
        prunable: What is pruned beside these, likewise: the ``weight`` of modules (``nn.Embedding``, for instance),
            or, by a glob that fits no module, any parameters by their full names (``"*pos_embed"``).

    Returns:
        Name to parameter, in the order of ``named_parameters``; a weight that is shared appears once, and not at all
        if one of its modules is ignored.

    Raises:
        InvalidInput: If nothing is left to prune, a selector matches nothing, or a weight that is not ignored cannot be
            pruned as it is: scripted, quantised, complex, adapted (LoRA), computed from others, without a shape yet.
    """
    ignore, prunable = _as_sequence(ignore), _as_sequence(prunable)
    for kind, selectors in (("ignore", ignore), ("prunable", prunable)):
        for selector in selectors:
            _check_selector(kind, selector, model)
    ignored, added = _selected(ignore, model), _selected(prunable, model)
    named = _named(model, prunable)
    first = {p: name for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        if module not in ignored and (what := _foreign(module)):
            raise InvalidInput(f"{path or type(model).__name__!r} {what}; or leave it out with ignore=")
    chosen: set[str] = set()
    dense: set[str] = set()
    for path, module, own in _candidates(model, added, named):
        weight = _parameters(module).get(own)
        if module in ignored or _fits(_join(path, own), ignore):
            dense.update([] if weight is None else [first[weight]])
            continue
        _check_plain(path, module, own, named)
        if weight is not None and weight.numel():
            chosen.add(first[weight])
    found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if name in chosen - dense}
    if not found:
        raise InvalidInput(f"{type(model).__name__} has nothing to prune: no convolution or linear weight is selected")
    return found


def asked_for(model: nn.Module, prunable: Selectors) -> set[str]:
    """Names of the weights that ``prunable`` means by itself."""
    prunable = _as_sequence(prunable)
    added, named = _selected(prunable, model), _named(model, prunable)
    first = {p: name for name, p in model.named_parameters()}
    own = {p for module in added for name, p in _parameters(module).items() if name in ("weight", *_usual(module))}
    return {first[p] for p in own} | {first[model.get_parameter(name)] for name in named}


def _named(model: nn.Module, prunable: Selectors) -> set[str]:
    """Parameters by the globs that fit no module."""
    globs = [selector for selector in prunable if isinstance(selector, str) and not _selected([selector], model)]
    return {name for name, _ in model.named_parameters(remove_duplicate=False) if _fits(name, globs)}


def _foreign(module: nn.Module) -> str:
    """What keeps a module from being pruned, and what to do about it; empty if nothing does."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is TorchScript, which holds compiled code: give the network that it was made of"
    if ".quantized" in type(module).__module__ and type(module).__module__.startswith("torch.ao.nn"):
        return "is quantised and has no weights that can be pruned: prune first, then quantise"
    if hasattr(module, "lora_A"):
        return "is a LoRA adapter: prune the network before, or merge the adapter first (peft: merge_and_unload)"
    return ""


def _candidates(
    model: nn.Module, added: Collection[nn.Module], named: Collection[str]
) -> Iterator[tuple[str, nn.Module, str]]:
    """Modules and names of their own tensors that are pruned if nothing ignores them."""
    for path, module in model.named_modules():
        usual = _usual(module) or (("weight",) if module in added else ())
        picked = (own for own in _parameters(module) if _join(path, own) in named)
        for own in dict.fromkeys((*usual, *picked)):
            yield path, module, own


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _as_sequence(selectors: Selector | Selectors) -> Selectors:
    if isinstance(selectors, (str, type, nn.Module)):
        return [selectors]
    if not isinstance(selectors, Iterable):
        raise InvalidInput(f"ignore= and prunable= take globs, classes and modules, not {selectors!r:.60}")
    return list(selectors)


def _join(path: str, own: str) -> str:
    return f"{path}.{own}" if path else own


def _usual(module: nn.Module) -> tuple[str, ...]:
    """Names of the tensors of a module that are pruned unless the user says otherwise."""
    if isinstance(module, nn.MultiheadAttention):
        return _PROJECTIONS
    return ("weight",) if isinstance(module, _PRUNABLE) else ()


def _check_selector(kind: str, selector: Any, model: nn.Module) -> None:
    matched = list(_selected([selector], model))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False) if _fits(name, [selector])]
    if not (matched or names):
        also = ", and no parameter" if isinstance(selector, str) else ""
        raise InvalidInput(f"{kind}: {_shown(selector)} matches no module of {type(model).__name__}{also}")
    weighted = any(hasattr(module, own) for module in matched for own in ("weight", *_usual(module)))
    if kind == "prunable" and matched and not weighted:
        raise InvalidInput(
            f"prunable: {_shown(selector)} has no tensor named weight; select parameters by a glob over full names, "
            f"such as {_example(model, matched[0])!r}"
        )


def _example(model: nn.Module, module: nn.Module) -> str:
    own = set(module.parameters())
    return next((name for name, p in model.named_parameters() if p in own), "*.weight_*")


def _check_plain(path: str, module: nn.Module, own: str, named: Iterable[str]) -> None:
    """Refuse a tensor that cannot be pruned as it is, unless the user named what it is computed from."""
    name, parameters = _join(path, own), _parameters(module)
    weight = parameters.get(own)
    if f"{own}_mask" in dict(module.named_buffers(recurse=False)) and f"{own}_orig" in parameters:
        raise InvalidInput(
            f"{name!r} is pruned by torch.nn.utils.prune: take its mask with "
            "pathex.masks.formats.from_torch_prune, then torch.nn.utils.prune.remove it"
        )
    if parametrize.is_parametrized(module, own) or (weight is None and _usual(module) == ("weight",)):
        if any(each.startswith(_join(path, "")) for each in named):
            return
        raise InvalidInput(
            f"the {own} of {path!r} is a parametrization, which may fill removed entries or divide by a norm that they "
            f"leave at zero: remove it first, ignore the module, or take what it is computed from"
            f" (prunable=[{_behind(path, module, own)!r}])"
        )
    if weight is not None and nn.parameter.is_lazy(weight):
        raise InvalidInput(f"the {own} of {path!r} has no shape yet; run the model once first")
    if weight is not None and weight.dim() == 0:
        raise InvalidInput(f"{name!r} is a single number, which cannot be pruned in part")
    packed = weight is not None and is_traceable_wrapper_subclass(weight) and not is_sharded(weight)
    if weight is not None and (packed or not weight.is_floating_point()):
        kind = type(weight).__name__ if packed else weight.dtype
        raise InvalidInput(
            f"{name!r} is {kind}, and only weights of a floating-point type are pruned (where it is quantised, prune "
            "first); or leave it out with ignore="
        )


def _behind(path: str, module: nn.Module, own: str) -> str:
    """Name of the largest tensor that a parametrized weight is computed from."""
    prefixes = (f"parametrizations.{own}.", f"{own}_")
    sources = {name: p.numel() for name, p in module.named_parameters() if name.startswith(prefixes)}
    return _join(path, max(sources, key=sources.__getitem__, default=f"{own}_*"))


def _fits(name: str, selectors: Iterable[Any]) -> bool:
    """Whether a name is among those of the globs."""
    return any(isinstance(selector, str) and fnmatchcase(name, selector) for selector in selectors)


def _selected(selectors: Iterable[Any], model: nn.Module) -> dict[nn.Module, None]:
    """The modules of a model that some selectors mean, in its order."""
    modules = list(model.named_modules())
    return {module: None for path, module in modules if any(_selects(one, path, module) for one in selectors)}


def _selects(selector: Any, path: str, module: nn.Module) -> bool:
    if isinstance(selector, str):
        return fnmatchcase(path, selector)
    if isinstance(selector, type):
        return isinstance(module, selector)
    if isinstance(selector, nn.Module):
        # A view of a network with wrapped parts has copies of its modules, with the same tensors.
        own = vars(module).get("_parameters")
        return any(own is vars(part).get("_parameters", part) for part in selector.modules())
    raise InvalidInput(f"a selector is a glob, a module class or a module, not {_shown(selector)}")


def _shown(selector: object) -> str:
    return repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", type(selector).__name__)

"""Masks on a model that trains: weights zeroed now and kept zero."""

import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathex.distributed import in_one_piece, is_sharded, like
from pathex.errors import InvalidInput, PathexWarning, listed
from pathex.masks.mask import Mask
from pathex.masks.wrappers import first_names, module_at, own_module


@dataclass
class _Removed:
    """The removed weights of a module, by its own names, and whether their gradients are zeroed as they come."""

    entries: dict[str, Tensor]
    gradients: bool = True


class _Layer:
    """Zeroes the removed weights of a module after its ``load_state_dict``, and their gradients as they come.

    Copies and pickles of the module take it along: there it hooks the gradients of the parameters that they hold.
    """

    def __init__(self, entries: dict[str, Tensor]) -> None:
        self.removed = _Removed(entries)
        self._hooked: dict[str, tuple[weakref.ref[Tensor], Any]] = {}

    @torch.no_grad()
    def __call__(self, module: nn.Module, _: object = None) -> None:
        for parameter, removed in self.of(module).values():
            _fill_zeros(parameter, removed)

    def of(self, module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameters of the module, which are hooked from then on, and what is removed of them."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        # Looked up each time: modules get new parameters, other shapes (in a copy that was compacted) or lose them.
        for leaf, removed in self.removed.entries.items():
            parameter = module._parameters.get(leaf)
            if parameter is not None and parameter.shape == removed.shape:
                self.removed.entries[leaf] = _place(removed, parameter)
                self._hook(leaf, parameter)
                found[leaf] = parameter, self.removed.entries[leaf]
        return found

    def _hook(self, leaf: str, parameter: Tensor) -> None:
        before = self._hooked.get(leaf)
        if (before is None or before[0]() is not parameter) and parameter.requires_grad and parameter.is_leaf:
            # A parameter's hook keeps alive what it refers to, unseen by the garbage collector: not the module.
            hook = parameter.register_post_accumulate_grad_hook(partial(_mask_gradient, self.removed, leaf))
            self._hooked[leaf] = weakref.ref(parameter), hook

    def release(self) -> None:
        for _, hook in self._hooked.values():
            hook.remove()
        self._hooked.clear()

    def __getstate__(self) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        return self.removed.entries, {leaf: parameter() for leaf, (parameter, _) in self._hooked.items()}

    def __setstate__(self, state: tuple[dict[str, Tensor], dict[str, Tensor | None]]) -> None:
        self.removed, self._hooked = _Removed(state[0]), {}
        for leaf, parameter in state[1].items():
            if parameter is not None:  # else another one took its place
                self._hook(leaf, parameter)


class Handle:
    """Keeps the weights of a model zero where a mask says so, until `remove` is called.

    Made by `attach`. Weights are zeroed at once, after every step of the optimizers (whatever momentum or weight decay
    put there) and after every ``load_state_dict`` of the model or a part of it; their gradients are zeroed too, as they
    come and before every step, so that they enter neither momentum nor a clipped norm. Layers and parameters that are
    replaced keep to the mask from the next step on; a warning says where they cannot. Copies (``deepcopy``) and pickles
    of the model keep their zeros and zero these gradients too: an optimizer of their own leaves removed weights at 0.

    Attributes:
        mask: The mask.
    """

    def __init__(self, model: nn.Module, mask: Mask, optimizers: Sequence[Optimizer] = ()) -> None:
        self.mask = mask
        self._model, self._optimizers = model, optimizers
        self._layers = {path: _Layer(entries) for path, entries in removed_by_module(model, mask).items()}
        self._modules: dict[str, tuple[nn.Module, Any]] = {}
        self._met: set[Tensor] = set()
        self._told: set[str] = set()
        self._stepping: list[tuple[Tensor, Tensor]] = []
        self._hooks: list[Any] = []
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
            self._hooks.append(optimizer.register_load_state_dict_post_hook(lambda _: self._met.clear()))
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the removed weights now."""
        for _, parameter, removed in self._held():
            _fill_zeros(parameter, removed)

    def _held(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Names and parameters that the mask is over, and what is removed of them."""
        for path, layer in self._layers.items():
            module = module_at(self._model, path)
            if module is not None and (path not in self._modules or self._modules[path][0] is not module):
                self._leave(path)
                self._modules[path] = module, module.register_load_state_dict_post_hook(layer)
            found = {} if module is None else layer.of(module)
            for leaf in layer.removed.entries:
                name = f"{path}.{leaf}" if path else leaf
                if leaf in found:
                    yield name, *found[leaf]
                else:
                    self._tell(name, "is no longer there in the shape of its mask, and what took its place is dense")

    def _tell(self, name: str, what: str) -> None:
        if name not in self._told:
            self._told.add(name)
            warnings.warn(f"{name!r} of the attached mask {what}", PathexWarning, stacklevel=2)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, *_: object) -> None:
        trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        self._stepping = []
        for name, parameter, removed in self._held():
            if parameter.requires_grad and parameter not in self._met:
                self._meet(name, parameter, removed)
            if parameter in trained:
                self._stepping.append((parameter, removed))
                _zero_gradient(parameter, removed)

    def _meet(self, name: str, parameter: Tensor, removed: Tensor) -> None:
        """Make the optimizers forget the removed weights of a parameter that is new to them."""
        self._met.add(parameter)
        holders = [each for each in self._optimizers if _trains(each, parameter)]
        for optimizer in holders:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.is_floating_point() and value.shape == removed.shape:
                    _fill_zeros(value, _place(removed, value))
        if not holders:
            self._tell(name, "is in none of its optimizers: attach it with all, or what trains it may undo it")
        _fill_zeros(parameter, removed)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        for parameter, removed in self._stepping:
            _fill_zeros(parameter, removed)

    def _leave(self, path: str) -> None:
        if path in self._modules:
            self._modules.pop(path)[1].remove()

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to the copied model, whose optimizers are not known."""
        return {**vars(self), "_hooks": [], "_optimizers": (), "_stepping": [], "_met": set()}

    def remove(self) -> None:
        """Let the weights go: they are zero until the next step of the optimizer fills them."""
        for hook in self._hooks:
            hook.remove()
        for path, layer in self._layers.items():
            layer.release()
            self._leave(path)
        self._hooks, self._layers = [], {}


def removed_by_module(model: nn.Module, mask: Mask) -> dict[str, dict[str, Tensor]]:
    """What is removed of each module, by names in the plain network; of shared weights under every name."""
    entries: dict[str, dict[str, Tensor]] = {}
    for name, first in first_names(own_module(model)).items():
        if first in mask:
            path, _, leaf = name.rpartition(".")
            entries.setdefault(path, {})[leaf] = ~mask[first]
    return entries


@torch.no_grad()
def _mask_gradient(layer: _Removed, leaf: str, parameter: Tensor) -> None:
    if layer.gradients and parameter.shape == layer.entries[leaf].shape:
        _zero_gradient(parameter, layer.entries[leaf])


def _zero_gradient(parameter: Tensor, removed: Tensor) -> None:
    gradient = parameter.grad
    if gradient is not None and gradient.layout is torch.strided:  # others cannot be filled
        _fill_zeros(gradient, _place(removed, gradient))


def _place(removed: Tensor, tensor: Tensor) -> Tensor:
    """The removed entries on the device of a tensor, and spread over processes as it is."""
    if not is_sharded(tensor):
        # Between its use and its next step, a sharded weight is there in one piece.
        return in_one_piece(removed).to(tensor.device)
    placed: Tensor = like(removed, tensor)
    return placed


def _fill_zeros(tensor: Any, removed: Any) -> None:
    if is_sharded(tensor):
        tensor, removed = tensor.to_local(), removed.to_local()
    tensor.masked_fill_(removed, 0)  # a product would keep NaN


def _trains(optimizer: Optimizer, parameter: Tensor | None) -> bool:
    return any(parameter is each for group in optimizer.param_groups for each in group["params"])


def check_mask(own: nn.Module, mask: Mask) -> None:
    """Refuse what is no mask (`InvalidInput`), or one that does not fit a network (`MaskMismatch`)."""
    if not isinstance(mask, Mask):
        raise InvalidInput(f"mask must be a pathex.Mask, not {type(mask).__name__}")
    mask.check(own)


def check_optimizers(model: nn.Module, mask: Mask, optimizers: Any) -> list[Optimizer]:
    """Of one optimizer or several those that really step: inside of others that wrap them.

    Returns:
        The optimizers.

    Raises:
        InvalidInput: If one is no optimizer, or masked weights that train are in none of them.
    """
    given = list(optimizers) if isinstance(optimizers, Iterable) and not isinstance(optimizers, str) else [optimizers]
    found = [_innermost(each) for each in given]
    parameters = dict(model.named_parameters())
    masked = {name: parameters[name] for name in mask if name in parameters}
    lost = [name for name, p in masked.items() if not any(_trains(each, p) for each in (*given, *found))]
    if len(lost) == len(mask):
        raise InvalidInput("the optimizer trains none of the masked weights: was it made for another model?")
    if lost := [name for name in lost if masked[name].requires_grad]:
        raise InvalidInput(
            f"masked weights are in none of the optimizers: {listed(lost)}; give all optimizers of the model as a list,"
            " or freeze these weights (requires_grad=False)"
        )
    return found


def _innermost(optimizer: Any) -> Optimizer:
    """The optimizer itself, or the one that it wraps: wrappers need not run the hooks of a step."""
    inner = next((each for each in getattr(optimizer, "__dict__", {}).values() if isinstance(each, Optimizer)), None)
    if inner is not None:
        return _innermost(inner)
    if not isinstance(optimizer, Optimizer):
        raise InvalidInput(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    if not getattr(type(optimizer).step, "hooked", False):
        raise InvalidInput(f"{type(optimizer).__name__} runs no hooks of its steps: its __init__ calls no Optimizer's")
    return optimizer


def attach(model: nn.Module, mask: Mask, optimizer: Optimizer | Iterable[Optimizer] | None = None) -> Handle:
    """Zero the removed weights of a model now and keep them zero through training.

    Args:
        model: The model, before or after ``torch.compile`` and other wrappers alike.
        mask: What to keep.
        optimizer: What trains the model, all of them if there are several; without it weights are kept zero through
            ``load_state_dict`` only.

    Returns:
        A handle; ``handle.remove()`` ends it.

    Raises:
        MaskMismatch: If the mask does not fit the model.
        InvalidInput: If an optimizer is none, or masked weights that train are in none of them.

    Example:
        >>> from pathex import Mask
        >>> model = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> handle = attach(model, Mask({"weight": torch.eye(2, dtype=torch.bool)}), optimizer)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> (model.weight == 0).tolist()
        [[False, True], [True, False]]
    """
    own = own_module(model)
    check_mask(own, mask)
    return Handle(model, mask, () if optimizer is None else check_optimizers(own, mask, optimizer))


@torch.no_grad()
def make_permanent(model: nn.Module, mask: Mask) -> nn.Module:
    """Zero the removed weights of a model in place, without hooks, and return it; `MaskMismatch` if it does not fit."""
    own = own_module(model)
    check_mask(own, mask)
    for name, entry in mask.items():
        parameter = own.get_parameter(name)
        _fill_zeros(parameter, _place(~entry, parameter))
    return model

"""Masks on a model that trains: weights zeroed now and kept zero."""

import copy
import weakref
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathex.errors import InvalidInput
from pathex.masks import Mask
from pathex.prunable import own_module
from pathex.sharded import in_one_piece, is_sharded, like

__all__ = ["Handle", "attach", "make_permanent"]

_LARGE = 2**20
"""Weights of a tensor that is worth a kernel of its own, and whose mask is kept in bytes."""

_INTEGERS: Mapping[int, torch.dtype] = MappingProxyType(
    {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64},
)
"""Integers by their size in bytes."""


class Handle:
    """Keeps the weights of a model zero where a mask says so, until `remove` is called.

    Made by `attach`. Weights are zeroed at once, after every step of the optimizer (whatever momentum or weight decay
    put there) and after every ``load_state_dict``; their gradients are zeroed too, so that they enter neither momentum
    nor a clipped norm. A ``deepcopy`` of the model keeps its zeros and zeroes these gradients too: an optimizer of its
    own leaves its removed weights at zero.

    Attributes:
        mask: The mask.
    """

    def __init__(self, model: nn.Module, mask: Mask, optimizer: Optimizer | None) -> None:
        self.mask = mask
        self._model = model
        self._removed = _removed(model, mask)
        self._zeros = _Zeros()
        self._hooks: list[Any] = [model.register_load_state_dict_post_hook(self._reapply)]
        if optimizer is not None:
            self._hooks.append(optimizer.register_step_post_hook(self._reapply))
        self._watch({name: model.get_parameter(name) for name in self._removed})
        self.apply()

    def _watch(self, parameters: Mapping[str, Tensor]) -> None:
        """Zero the gradient of removed weights whenever it has been computed."""
        gradients = _Gradients({name: self._removed[name] for name in parameters})
        for name, parameter in parameters.items():
            if parameter.requires_grad and parameter.is_leaf:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(gradients.computed, name)))

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the removed weights now."""
        # Looked up each time: load_state_dict(assign=True) replaces parameters.
        parameters = {name: self._model.get_parameter(name) for name in self._removed}
        for name, parameter in parameters.items():
            removed = _fitted(self._removed[name], parameter)
            if not is_sharded(parameter) and removed.stride() != parameter.stride():
                removed = torch.empty_like(parameter, dtype=torch.bool).copy_(removed)  # in the order of its memory
            self._removed[name] = removed
        self._zeros.fill(parameters, self._removed)

    def _reapply(self, *_: object) -> None:
        self.apply()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handle":
        """The hook of a copied model: it holds the copy, as far as the copy is this handle's model."""
        twin = object.__new__(Handle)
        twin.mask, twin._model, twin._hooks = self.mask, memo.get(id(self._model), nn.Module()), []
        twin._removed = dict(self._removed) if id(self._model) in memo else {}
        twin._zeros = _Zeros()
        # Copied here, a parameter is the same one that the copied module gets.
        twin._watch({name: copy.deepcopy(self._model.get_parameter(name), memo) for name in twin._removed})
        return twin

    def remove(self) -> None:
        """Let the weights go: they are zero until the next step of the optimizer fills them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _Gradients:
    """Zeroes gradients of removed weights as soon as the backward pass that computes them is over.

    It knows neither the handle nor the model: the hooks of a parameter keep alive what they know, and the collector
    does not see it.
    """

    def __init__(self, removed: Mapping[str, Tensor]) -> None:
        self._removed, self._zeros = removed, _Zeros()
        self._pass = _NO_PASS
        self._ready: dict[str, weakref.ref[Tensor]] = {}

    def computed(self, name: str, parameter: Tensor) -> None:
        """Take note of a parameter whose gradient has just been computed."""
        if parameter.grad is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # At once: it is about to be sent to other processes.
            _fill(parameter.grad, _fitted(self._removed[name], parameter.grad))
            return
        # The number tells this pass from one before that ended in an error.
        if (number := torch._C._current_graph_task_id()) != self._pass:
            self._pass, self._ready = number, {}
            torch.autograd.Variable._execution_engine.queue_callback(self._over)
        self._ready[name] = weakref.ref(parameter)

    @torch.no_grad()
    def _over(self) -> None:
        ready, self._pass, self._ready = self._ready, _NO_PASS, {}
        parameters = {name: known() for name, known in ready.items()}
        found = {name: each.grad for name, each in parameters.items() if each is not None and each.grad is not None}
        self._zeros.fill(found, {name: _fitted(self._removed[name], each) for name, each in found.items()})


class _Zeros:
    """Zeroes entries of many tensors at once.

    Small tensors are multiplied by zeros and ones, all of them in one call, as the integers that their bits are: what
    stays is unchanged in every bit, and what is removed is zero even where it was no number.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def fill(self, tensors: Mapping[str, Tensor], removed: Mapping[str, Tensor]) -> None:
        """Zero what is removed.

        Args:
            tensors: The tensors, changed in place.
            removed: True where an entry is removed, on their devices; more names than tensors are allowed.
        """
        small = [name for name, tensor in tensors.items() if _joins(tensor)]
        for name, tensor in tensors.items():
            if not _joins(tensor):
                _fill(tensor, removed[name])
        if small:
            bits = [tensors[name].detach().view(_INTEGERS[tensors[name].element_size()]) for name in small]
            kept = [self._ones(name, removed[name], each) for name, each in zip(small, bits, strict=True)]
            torch._foreach_mul_(bits, kept)

    def _ones(self, name: str, removed: Tensor, like: Tensor) -> Tensor:
        """One where an entry stays and zero where not, in the form of a tensor."""
        known = self._kept.get(name)
        if known is None or known[0] is not removed or known[1].dtype != like.dtype or known[1].device != like.device:
            known = self._kept[name] = (removed, torch.empty_like(like).copy_(~removed))
        return known[1]


def _joins(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and tensor.numel() < _LARGE and tensor.element_size() in _INTEGERS


def _fitted(removed: Any, tensor: Any) -> Tensor:
    """The removed entries where a tensor is: on its device, and spread over processes as it is."""
    if not is_sharded(tensor):
        # Between its use and its next step, a sharded weight is there in one piece.
        return in_one_piece(removed).to(tensor.device)
    spread: Tensor = like(removed, tensor)
    return spread


def _fill(tensor: Any, removed: Any) -> None:
    """Zero what is removed, of a sharded tensor the part that is here."""
    if is_sharded(tensor):
        tensor, removed = tensor.to_local(), removed.to_local()
    tensor.masked_fill_(removed, 0)


_NO_PASS = -1
"""In place of the number of a backward pass."""


def _removed(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    if not isinstance(mask, Mask):
        raise InvalidInput(f"mask must be a pathex.Mask, not {type(mask).__name__}")
    mask.check(model)
    return {name: _fitted(~entry, model.get_parameter(name)) for name, entry in mask.items()}


def attach(model: nn.Module, mask: Mask, optimizer: Optimizer | None = None) -> Handle:
    """Zero the removed weights of a model now and keep them zero through training.

    Args:
        model: The model, before or after ``torch.compile`` alike.
        mask: The mask.
        optimizer: The optimizer that trains the model. Without it weights are kept zero through ``load_state_dict``
            only.

    Returns:
        A handle; ``handle.remove()`` ends it.

    Raises:
        MaskMismatch: If the mask does not fit the model.
        InvalidInput: If the optimizer is none, or holds none of the masked weights.

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
    model = own_module(model)
    if optimizer is not None:
        if not isinstance(optimizer, Optimizer):
            raise InvalidInput(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
        parameters = dict(model.named_parameters())
        trained = {p for group in optimizer.param_groups for p in group["params"]}
        if not any(parameters.get(name) in trained for name in mask):
            raise InvalidInput("the optimizer trains none of the masked weights: was it made for another model?")
    return Handle(model, mask, optimizer)


@torch.no_grad()
def make_permanent(model: nn.Module, mask: Mask) -> nn.Module:
    """Zero the removed weights of a model once and for all, without any hook.

    Args:
        model: The model, changed in place.
        mask: The mask.

    Returns:
        The same model.

    Raises:
        MaskMismatch: If the mask does not fit the model.
    """
    own = own_module(model)
    for name, removed in _removed(own, mask).items():
        _fill(own.get_parameter(name), removed)
    return model

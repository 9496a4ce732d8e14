"""Masks on a model that trains: weights zeroed now and kept zero."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathex.distributed import in_one_piece, is_sharded, like
from pathex.errors import InvalidInput
from pathex.masks.mask import Mask
from pathex.masks.prunable import own_module


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
        self._hooks: list[Any] = [model.register_load_state_dict_post_hook(self._reapply)]
        if optimizer is not None:
            self._hooks.append(optimizer.register_step_post_hook(self._reapply))
        self._hook_gradients({name: model.get_parameter(name) for name in self._removed})
        self.apply()

    def _hook_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            if parameter.requires_grad and parameter.is_leaf:
                # A parameter's hook keeps alive what it refers to, unseen by the garbage collector: not the model.
                hook = partial(_mask_gradient, self._removed, name)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the removed weights now."""
        for name, removed in self._removed.items():
            # Looked up each time: load_state_dict(assign=True) replaces parameters.
            parameter = self._model.get_parameter(name)
            if parameter.shape != removed.shape:  # in a copy that was compacted
                continue
            self._removed[name] = _place(removed, parameter)
            _fill_zeros(parameter, self._removed[name])

    def _reapply(self, *_: object) -> None:
        self.apply()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handle":
        """The hook of a copied model: it belongs to the copy, as far as that is a copy of this handle's model."""
        twin = object.__new__(Handle)
        twin.mask, twin._model, twin._hooks = self.mask, memo.get(id(self._model), nn.Module()), []
        twin._removed = dict(self._removed) if id(self._model) in memo else {}
        # Copied here, a parameter is the same one that the copied module gets.
        twin._hook_gradients({name: copy.deepcopy(self._model.get_parameter(name), memo) for name in twin._removed})
        return twin

    def remove(self) -> None:
        """Let the weights go: they are zero until the next step of the optimizer fills them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


@torch.no_grad()
def _mask_gradient(removed: Mapping[str, Tensor], name: str, parameter: Tensor) -> None:
    if parameter.grad is not None:
        _fill_zeros(parameter.grad, _place(removed[name], parameter.grad))


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


def _removed(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    if not isinstance(mask, Mask):
        raise InvalidInput(f"mask must be a pathex.Mask, not {type(mask).__name__}")
    mask.check(model)
    return {name: _place(~entry, model.get_parameter(name)) for name, entry in mask.items()}


def check_optimizer(model: nn.Module, mask: Mask, optimizer: Any) -> None:
    """Refuse what is no optimizer, or one that trains none of the masked weights (`InvalidInput`)."""
    if not isinstance(optimizer, Optimizer):
        raise InvalidInput(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    parameters = dict(model.named_parameters())
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    if not any(parameters.get(name) in trained for name in mask):
        raise InvalidInput("the optimizer trains none of the masked weights: was it made for another model?")


def attach(model: nn.Module, mask: Mask, optimizer: Optimizer | None = None) -> Handle:
    """Zero the removed weights of a model now and keep them zero through training.

    Args:
        model: The model, before or after ``torch.compile`` alike.
        mask: What to keep.
        optimizer: What trains the model; without it weights are kept zero through ``load_state_dict`` only.

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
        check_optimizer(model, mask, optimizer)
    return Handle(model, mask, optimizer)


@torch.no_grad()
def make_permanent(model: nn.Module, mask: Mask) -> nn.Module:
    """Zero the removed weights of a model in place, without hooks, and return it; `MaskMismatch` if it does not fit."""
    own = own_module(model)
    for name, removed in _removed(own, mask).items():
        _fill_zeros(own.get_parameter(name), removed)
    return model

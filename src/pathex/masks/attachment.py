"""Masks on a model that trains: weights zeroed now and kept zero."""

import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathex.distributed import in_one_piece, is_sharded, like
from pathex.errors import InvalidInput, PathexWarning, listed
from pathex.masks.mask import Mask
from pathex.masks.wrappers import first_names, module_at, own_module


class _Weight:
    """What is removed of a module's parameter: zeroed when the module loads a state dict, gradients as they come.

    Copies and pickles of the module take it along, and there it hooks the parameter of the copy.
    """

    def __init__(self, leaf: str, entry: str, removed: Tensor) -> None:
        self.leaf, self.entry, self.removed = leaf, entry, removed  # entry: name in the mask
        self.masks_gradient = True
        self.hooked: tuple[weakref.ref[Tensor], Any] | None = None
        self.zeroed: tuple[weakref.ref[Tensor], int] | None = None  # a gradient, and its version then

    @torch.no_grad()
    def __call__(self, module: nn.Module, _: object = None) -> None:
        parameter = self.of(module)
        if parameter is not None:
            _fill_zeros(parameter, self.removed)

    def of(self, module: nn.Module | None) -> Tensor | None:
        """The parameter, hooked from then on, if there is one in the shape of the mask: copies may be compacted."""
        parameter = None if module is None else module._parameters.get(self.leaf)
        if parameter is None or parameter.shape != self.removed.shape:
            return None
        self.removed = _place(self.removed, parameter)
        if self.hooked is None or self.hooked[0]() is not parameter:
            self._hook(parameter)
        return parameter

    def _hook(self, parameter: Tensor) -> None:
        if parameter.requires_grad and parameter.is_leaf:
            if self.hooked:
                self.hooked[1].remove()
            # A parameter's hook keeps alive what it refers to, unseen by the garbage collector.
            hook = partial(_mask_gradient, weakref.ref(self))
            self.hooked = weakref.ref(parameter), parameter.register_post_accumulate_grad_hook(hook)

    def __getstate__(self) -> tuple[str, str, Tensor, Tensor | None]:
        return self.leaf, self.entry, self.removed, self.hooked and self.hooked[0]()

    def __setstate__(self, state: tuple[str, str, Tensor, Tensor | None]) -> None:
        self.__init__(*state[:3])  # type: ignore[misc]
        if state[3] is not None:
            self._hook(state[3])


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

    def __init__(self, model: nn.Module, mask: Mask, optimizers: Sequence[Optimizer]) -> None:
        self.mask, self._model, self._optimizers = mask, model, optimizers
        names = {name: first for name, first in first_names(own_module(model)).items() if first in mask}
        self._weights = {n: _Weight(n.rpartition(".")[2], first, ~mask[first]) for n, first in names.items()}
        self._met: set[Tensor] = set()
        self._told: set[str] = set()
        self._stepping: list[tuple[_Weight, Tensor]] = []
        self._hooks: list[Any] = []
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
            self._hooks.append(optimizer.register_load_state_dict_post_hook(lambda _: self._met.clear()))
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the removed weights now."""
        for _, weight, parameter in self._held():
            _fill_zeros(parameter, weight.removed)

    def _held(self) -> Iterator[tuple[str, _Weight, Tensor]]:
        """The masked parameters that the model has now."""
        for name, weight in self._weights.items():
            module = module_at(self._model, name.rpartition(".")[0])
            parameter = weight.of(module)
            if module is None or parameter is None:
                self._tell(name, "is no longer there in the shape of its mask; what took its place is dense")
                continue
            if weight not in module._load_state_dict_post_hooks.values():
                module.register_load_state_dict_post_hook(weight)
            yield name, weight, parameter

    def _tell(self, name: str, what: str) -> None:
        if name not in self._told:
            self._told.add(name)
            warnings.warn(f"{name!r} of the attached mask {what}", PathexWarning, stacklevel=2)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, *_: object) -> None:
        trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        self._stepping = []
        for name, weight, parameter in self._held():
            new = parameter.requires_grad and parameter not in self._met
            if new:
                self._meet(name, weight, parameter)
            if parameter in trained:
                if new:  # else weight decay sees it; the others may be in use by a backward pass
                    _fill_zeros(parameter, weight.removed)
                self._stepping.append((weight, parameter))
                _zero_gradient(weight, parameter)

    def _meet(self, name: str, weight: _Weight, parameter: Tensor) -> None:
        """Make the optimizers forget the removed weights of a parameter that is new."""
        holders = [each for each in self._optimizers if _trains(each, parameter)]
        if not holders:
            self._tell(name, "is now in none of its optimizers and may be filled: attach the mask with all of them")
        for value in (value for each in holders for value in each.state.get(parameter, {}).values()):
            if isinstance(value, Tensor) and value.shape == weight.removed.shape and value.is_floating_point():
                _fill_zeros(value, _place(weight.removed, value))
        self._met.add(parameter)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        for weight, parameter in self._stepping:
            _fill_zeros(parameter, weight.removed)

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to the copied model; that one's optimizers are not known."""
        return {**vars(self), "_hooks": [], "_optimizers": (), "_stepping": [], "_met": set()}

    def remove(self) -> None:
        """Let the weights go: they are zero until the next step of the optimizer fills them."""
        for name, weight in self._weights.items():
            module = module_at(self._model, name.rpartition(".")[0])
            hooks = {} if module is None else module._load_state_dict_post_hooks
            for key in [key for key, hook in hooks.items() if hook is weight]:
                del hooks[key]
            self._hooks += weight.hooked[1:] if weight.hooked else ()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._weights = [], {}


@torch.no_grad()
def _mask_gradient(known: "weakref.ref[_Weight]", parameter: Tensor) -> None:
    weight = known()
    if weight is not None and weight.masks_gradient and parameter.shape == weight.removed.shape:
        _zero_gradient(weight, parameter)


def _zero_gradient(weight: _Weight, parameter: Tensor) -> None:
    gradient, known = parameter.grad, weight.zeroed
    if gradient is None or gradient.layout is not torch.strided:  # which cannot be filled
        return
    if known is None or known[0]() is not gradient or known[1] != gradient._version:
        _fill_zeros(gradient, _place(weight.removed, gradient))
        weight.zeroed = weakref.ref(gradient), gradient._version


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


def _check_mask(own: nn.Module, mask: Mask) -> None:
    if not isinstance(mask, Mask):
        raise InvalidInput(f"mask must be a pathex.Mask, not {type(mask).__name__}")
    mask.check(own)
    if any(isinstance(module, torch.jit.ScriptModule) for module in own.modules()):
        raise InvalidInput("a scripted network takes no mask: give the module that it was made of")
    if meta := [name for name in mask if own.get_parameter(name).is_meta]:
        raise InvalidInput(f"{listed(meta)}: on the device 'meta', where there is nothing to zero; load weights first")


def check_optimizers(model: nn.Module, mask: Mask, optimizers: Any) -> list[Optimizer]:
    """The optimizers that step, inside of what wraps them; `InvalidInput` if masked weights train in none of them."""
    own = own_module(model)
    _check_mask(own, mask)
    given = [*optimizers] if isinstance(optimizers, Iterable) and not isinstance(optimizers, str) else [optimizers]
    found = [_innermost(each) for each in given]
    # What wraps others may know of more: of the shares of other processes.
    lost = [n for n in mask if not any(_trains(each, own.get_parameter(n)) for each in (*given, *found))]
    training = [name for name in lost if own.get_parameter(name).requires_grad]
    if training or len(lost) == len(mask):
        raise InvalidInput(
            f"the optimizers hold no {listed(training or lost)}: were they made for another model? Give all that train"
            " this one as a list, or freeze what is not trained (requires_grad=False)"
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

    Examples:
        >>> from pathex import Mask
        >>> model = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> handle = attach(model, Mask({"weight": torch.eye(2, dtype=torch.bool)}), optimizer)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> (model.weight == 0).tolist()
        [[False, True], [True, False]]
    """
    _check_mask(own_module(model), mask)
    return Handle(model, mask, [] if optimizer is None else check_optimizers(model, mask, optimizer))


@torch.no_grad()
def make_permanent(model: nn.Module, mask: Mask) -> nn.Module:
    """Zero the removed weights of a model in place, without hooks, and return it; `MaskMismatch` if it does not fit."""
    own = own_module(model)
    _check_mask(own, mask)
    for name, entry in mask.items():
        parameter = own.get_parameter(name)
        _fill_zeros(parameter, _place(~entry, parameter))
    return model

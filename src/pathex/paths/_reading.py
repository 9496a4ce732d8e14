"""How a forward pass is intercepted: which tensors carry paths, and which rule reads each torch function.

A reading is a `torch.overrides.TorchFunctionMode`. It sees every torch function that the forward pass of an unmodified
module calls, whether it was written as a module, a function, a tensor method or an in-place form. Tensors
that come from the input carry paths; all others are constants and are computed as they are.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from pathex.errors import UnsupportedOperation
from pathex.paths._made import Made, Tensors

__all__ = ["Reading", "RuleTable", "is_in_place", "spellings", "tensors_in", "without_autocast"]

Rule = Callable[..., Any]


def spellings(*names: str) -> Iterator[Callable[..., Any]]:
    """Every torch function with one of the given names: ``torch.relu``, ``F.relu``, ``Tensor.relu``, ...

    Args:
        *names: Function names, in-place forms included where they are wanted.

    Yields:
        The functions.
    """
    for name in names:
        for namespace in (torch, F, torch.Tensor, torch._C._nn, torch.special, torch.linalg):
            function = getattr(namespace, name, None)
            if callable(function):
                yield function


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries of arguments.

    Args:
        values: Arguments of a call, or results.

    Yields:
        The tensors.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


def is_in_place(func: Callable[..., Any]) -> bool:
    """Whether a torch function writes into its first argument (``add_``, ``__iadd__``, ``__setitem__``).

    Args:
        func: The torch function.

    Returns:
        True if it does.
    """
    name: str = getattr(func, "__name__", "")
    return name.startswith("__i") or name == "__setitem__" if name.startswith("__") else name.endswith("_")


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Switches off the autocast that a network itself switched on in its forward pass.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class RuleTable(dict[Callable[..., Any], Rule]):
    """Rules by torch function, called as ``rule(reading, function, *args, **kwargs)`` of the intercepted call."""

    def add(self, *names: str) -> Callable[[Rule], Rule]:
        """Register a rule under every spelling of the names.

        Args:
            *names: Names of torch functions.

        Returns:
            A decorator.
        """

        def register(rule: Rule) -> Rule:
            self.update(dict.fromkeys(spellings(*names), rule))
            return rule

        return register


def _getters(*names: str) -> Iterator[Callable[..., Any]]:
    for name in names:
        if hasattr(torch.Tensor, name):
            yield getattr(torch.Tensor, name).__get__


# What tells a forward pass about the form of a tensor but not about its values.
QUERIES: frozenset[Callable[..., Any]] = frozenset(
    [
        *spellings("size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point"),
        *spellings("is_complex", "get_device", "element_size", "__len__", "data_ptr", "storage_offset"),
        *spellings("__hash__", "is_inference", "is_pinned", "is_same_size", "dim_order"),
        *_getters(
            "shape", "ndim", "dtype", "device", "requires_grad", "layout", "is_cuda", "is_sparse", "is_quantized"
        ),
        *_getters("is_mps", "is_leaf", "grad_fn", "is_nested", "itemsize", "nbytes", "is_cpu", "is_meta", "_version"),
        *_getters("is_mkldnn", "is_xpu", "names", "is_vulkan", "output_nr"),
    ]
)

# A new tensor with the form of another one: its values do not come from the input.
CREATIONS: frozenset[Callable[..., Any]] = frozenset(
    spellings(
        *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "new_empty_strided"),
    )
)

# What decides by the values of its input, and has no derivative.
DECISIONS: frozenset[Callable[..., Any]] = frozenset(
    spellings(
        *("gt", "ge", "lt", "le", "eq", "ne", "greater", "greater_equal", "less", "less_equal", "not_equal"),
        *("__gt__", "__ge__", "__lt__", "__le__", "__eq__", "__ne__", "argmax", "argmin", "argsort", "searchsorted"),
        *("sign", "sgn", "round", "floor", "ceil", "trunc", "isnan", "isinf", "isfinite", "heaviside", "bucketize"),
        *("bool", "int", "long", "short", "count_nonzero", "nonzero", "multinomial", "bernoulli", "signbit"),
    )
)

# What gives its first argument the form of another one, whose values do not matter.
FORMED_LIKE: frozenset[Callable[..., Any]] = frozenset(spellings("view_as", "expand_as", "reshape_as", "type_as", "to"))


class Reading(TorchFunctionMode):
    """Base of all readings: tracks which tensors carry paths and finds the rule of each intercepted function.

    Attributes:
        purpose: Word for error messages.
        model: The network that is read.
        tensors: Its parameters and buffers, or what stands in for them, by name.
    """

    rules: ClassVar[RuleTable] = RuleTable()

    def __init__(self, model: nn.Module, tensors: Tensors) -> None:
        super().__init__()
        self.model = model
        self.tensors = tensors
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor):
                tensor._pathex_name = name  # type: ignore[attr-defined]
        self._grad_enabled = torch.is_grad_enabled()

    def __enter__(self) -> Any:
        self._grad_enabled = torch.is_grad_enabled()
        return super().__enter__()

    # -- which tensors carry paths ---------------------------------------------------------------------------------

    def carry(self, result: Any) -> Any:
        """Mark a result (a tensor, or a tuple or list of tensors) as carrying paths.

        Args:
            result: The result of a rule.

        Returns:
            The same object.
        """
        for tensor in tensors_in([result]):
            if tensor.is_floating_point():
                tensor._pathex_reading = self  # type: ignore[attr-defined]
        return result

    def carries(self, value: Any) -> bool:
        """Whether a value is a tensor that depends on the input of the network.

        Args:
            value: Any argument.

        Returns:
            True for a tensor that carries paths.

        Raises:
            UnsupportedOperation: If the tensor was computed from the input by something that cannot be intercepted.
        """
        if not isinstance(value, Tensor):
            return False
        if any(getattr(t, "_pathex_reading", None) is self for t in (value, value._base)):
            return True
        if value.grad_fn is not None and self.name_of(value) is None and not getattr(value, "_pathex_constant", False):
            raise self.unsupported(value.grad_fn.name(), "it was computed where torch functions cannot be intercepted")
        return False

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a parameter or buffer.

        Args:
            tensor: Any tensor.

        Returns:
            Its name, or None if it is not one of the network's.
        """
        name: str | None = getattr(tensor, "_pathex_name", None)
        return name

    def constant(self, result: Any) -> Any:
        """Mark a result as computed from constants only.

        Args:
            result: Any result.

        Returns:
            The same object.
        """
        for tensor in tensors_in([result]):
            if tensor.grad_fn is not None:
                tensor._pathex_constant = True  # type: ignore[attr-defined]
        return result

    def claim(self, target: Tensor, func: Callable[..., Any]) -> Tensor:
        """Let a constant carry paths, because what carries paths is written into it.

        Args:
            target: The constant that is written to, or a view of it.
            func: The torch function that writes, for the error message.

        Returns:
            The whole tensor that ``target`` is, or is a view of.
        """
        self._refuse_parameter(target, func)
        whole = target if target._base is None else target._base
        self.carry([target, whole])
        return whole

    def _refuse_parameter(self, target: Any, func: Callable[..., Any]) -> None:
        """Parameters of a call may share memory with those of the model, which a forward pass must leave alone."""
        if not isinstance(target, Tensor):
            return
        memory = target.untyped_storage().data_ptr()
        if memory and any(_holds(self.tensors[name], memory) for name in self._parameters if name in self.tensors):
            raise self.unsupported(_name_of(func), "it writes into a parameter")

    @cached_property
    def _parameters(self) -> list[str]:
        """Names of the network's parameters."""
        modules = self.model.named_modules()
        return [f"{path}.{own}" if path else own for path, module in modules for own in module._parameters]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in QUERIES:
            return func(*args, **kwargs)
        carried = [self.carries(tensor) for tensor in tensors_in((args, kwargs))]
        if not any(carried) or (func in FORMED_LIKE and not self.carries(args[0])):
            if is_in_place(func):
                self._refuse_parameter(args[0], func)
            return self.on_constant(func, args, kwargs)
        if func in CREATIONS:
            return self.constant(func(*args, **kwargs))
        if func in DECISIONS:
            return self.constant(self.decide(func, args, kwargs))
        rule = self.rules.get(func)
        if rule is None:
            raise self.unsupported(_name_of(func))
        if kwargs.get("out") is not None:
            raise self.unsupported(_name_of(func), "it writes into out=")
        if torch.is_grad_enabled() != self._grad_enabled:
            raise self.unsupported(_name_of(func), "it runs without gradient, or in an autograd function of its own")
        return self.after(rule, self._apply(rule, func, args, kwargs))

    def _apply(self, rule: Rule, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with without_autocast():
                result = rule(self, func, *args, **kwargs)
        except TypeError as error:
            try:
                inspect.signature(rule).bind(self, func, *args, **kwargs)
            except TypeError as unknown:
                raise self.unsupported(_name_of(func), f"called in a form that is not known ({unknown})") from error
            raise
        if isinstance(result, Tensor) and not result.is_floating_point():
            raise self.unsupported(_name_of(func), f"its result is {result.dtype}")
        return result

    def inside(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that is written in torch functions which have rules of their own.

        Args:
            function: The function.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            Its result, as read.
        """
        with self:
            return function(*args, **kwargs)

    def decide(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call without derivative, whose result depends on the input.

        Args:
            func: The torch function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Raises:
            UnsupportedOperation: Here; readings that keep results override it.
        """
        raise self.unsupported(_name_of(func), "it decides by values that this reading does not have")

    def on_constant(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that no path enters: computed as it stands.

        Args:
            func: The torch function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            The result, marked as constant.
        """
        return self.constant(func(*args, **kwargs))

    def after(self, rule: Rule, result: Any) -> Any:
        """What happens to the result of a rule: it carries paths from now on.

        Args:
            rule: The rule that was applied.
            result: Its result.

        Returns:
            The result.
        """
        return self.carry(result)

    # -- errors ----------------------------------------------------------------------------------------------------

    def unsupported(self, function: str, why: str = "") -> UnsupportedOperation:
        """The error for an operation without a rule; names the module whose forward pass is running.

        Args:
            function: Name of the torch function.
            why: What is special about this call.

        Returns:
            The exception, ready to be raised.
        """
        reason = f": {why}" if why else ""
        return UnsupportedOperation(f"no rule to read {function} in {self._running_module()} as paths{reason}")

    def checkpointed(self) -> UnsupportedOperation:
        """The error for a network that checkpoints its activations.

        Returns:
            The exception, ready to be raised.
        """
        return self.unsupported("torch.utils.checkpoint", "switch gradient checkpointing off")

    def _running_module(self) -> str:
        names = {id(module): name for name, module in self.model.named_modules()}
        frame = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in names:
                return f"module {names[id(owner)] or '(the whole network)'!r} ({type(owner).__name__})"
            frame = frame.f_back  # type: ignore[assignment]
        return "the network"


def _holds(tensor: Tensor | Made, memory: int) -> bool:
    return tensor.holds(memory) if isinstance(tensor, Made) else tensor.untyped_storage().data_ptr() == memory


def _name_of(func: Callable[..., Any]) -> str:
    return resolve_name(func) or getattr(func, "__name__", None) or str(func)

"""A module run functionally: its own tensors or others in their place, and nothing about it changed afterwards."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pathex.errors import InvalidInput
from pathex.paths._made import Made, Tensors, gathered, made_where_used
from pathex.sharded import is_sharded

__all__ = ["compute_dtype", "first_tensor", "run", "tensors_of", "tf32_products", "untouched"]

_TF32: ContextVar[bool] = ContextVar("tf32_products", default=False)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run scoring code on a model and leave the model and torch's global state as they were.

    Inside, every module is in evaluation mode and runs uncompiled, autocast and TF32 are off and the random generators
    are forked.
    Training flags, generators, back-end flags and tensors that a forward pass stores on its modules come back also when
    an exception is raised.

    Args:
        model: The model that is scored.

    Yields:
        Nothing.
    """
    modules = list(model.modules())
    devices = {p.device for module in modules for p in module._parameters.values() if p is not None and p.is_cuda}
    with contextlib.ExitStack() as stack:
        # While work is captured the state of a GPU's generator cannot be set; then who captures has forked it.
        forked = [] if devices and torch.cuda.is_current_stream_capturing() else [d.index or 0 for d in devices]
        stack.enter_context(torch.random.fork_rng(devices=forked))
        for kind in {"cpu", *(d.type for d in devices)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_full_precision())
        stack.enter_context(_written_out_attention())
        if "torch._dynamo" in sys.modules:  # somebody compiled something: run it as it was written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        grads = torch.is_grad_enabled()  # leaving inference mode would switch gradients on
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grads))
        stored = [(module, module.training, dict(vars(module))) for module in modules]
        try:
            for module in modules:
                if module.training:
                    module.training = False
            yield
        finally:
            for module, training, before in stored:
                if module.training != training:
                    module.training = training
                _put_back(module, before)


def _put_back(module: nn.Module, before: Mapping[str, Any]) -> None:
    """Undo what a forward pass left on a module: the old weight norm, for one, stores the weight of the call."""
    own = vars(module)
    # Most are the same objects as before, which is known sooner than what they are.
    for name in [n for n, value in own.items() if before.get(n) is not value and isinstance(value, Tensor)]:
        if name in before:
            own[name] = before[name]
        else:
            del own[name]


@contextlib.contextmanager
def _written_out_attention() -> Iterator[None]:
    """Transformer layers as they are written: their shortcut in evaluation mode leaves torch functions."""
    allowed = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(allowed)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Products in full float32, neither TF32 on a GPU (without `tf32_products`) nor bfloat16 by oneDNN."""
    backends: Any = torch.backends
    # Torch's older names for the same read and write several of these at once and refuse a mix of them.
    gpu = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    cpu = [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    with _precision_of(cpu, "ieee"), _precision_of(gpu, "tf32" if _TF32.get() else "ieee"):
        yield


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """Products in TF32 on GPUs that have it, also in what is `untouched` inside.

    Yields:
        Nothing.
    """
    before = _TF32.set(True)
    try:
        with _full_precision():
            yield
    finally:
        _TF32.reset(before)


@contextlib.contextmanager
def _precision_of(places: Sequence[Any], wanted: str) -> Iterator[None]:
    full = ("none", "ieee")
    before = [(place, place.fp32_precision) for place in places]
    changed = [(place, found) for place, found in before if found != wanted and {found, wanted} != set(full)]
    for place, _ in changed:
        place.fp32_precision = wanted
    try:
        yield
    finally:
        for place, precision in changed:
            place.fp32_precision = "none"  # which takes over what is said of all operations
            if place.fp32_precision != precision:
                place.fp32_precision = precision


def compute_dtype(model: nn.Module, tensors: Tensors | None = None) -> torch.dtype:
    """The precision in which a model is scored: its own, but at least float32.

    Args:
        model: The model.
        tensors: Tensors that stand in for parameters, by name.

    Returns:
        ``torch.float64`` if any floating-point parameter or any of the tensors is float64, otherwise
        ``torch.float32``.
    """
    dtypes = {p.dtype for p in model.parameters()} | {tensor.dtype for tensor in (tensors or {}).values()}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def tensors_of(model: nn.Module, replaced: Tensors | None, dtype: torch.dtype) -> dict[str, Any]:
    """The parameters and buffers that a functional call uses.

    Args:
        model: The model.
        replaced: Tensors that stand in for parameters or buffers, by name; bool masks become 0 and 1.
        dtype: Floating-point tensors that are not replaced are cast to it.

    Returns:
        Name to tensor, or to what makes it where it is used (scored weights, and parameters that are spread over
        processes); buffers are copies, so that a forward pass that writes to them does not reach the model.

    Raises:
        InvalidInput: If ``replaced`` names a tensor that the model does not have.
    """
    replaced = replaced or {}
    parameters = dict(model.named_parameters())
    own = {name: parameter for name, parameter in parameters.items() if name not in replaced}
    tensors: dict[str, Any] = {n: _cast(p.detach(), dtype) for n, p in own.items() if not is_sharded(p)}
    tensors |= gathered({name: parameter for name, parameter in own.items() if is_sharded(parameter)}, dtype)
    tensors |= {name: _cast(b.detach().clone(), dtype) for name, b in model.named_buffers()}
    for name, tensor in replaced.items():
        if name not in parameters and name not in tensors:
            raise InvalidInput(f"the model has no parameter or buffer named {name!r}")
        tensors[name] = tensor.to(dtype) if tensor.dtype == torch.bool else tensor
    return tensors


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def run(model: nn.Module, tensors: Tensors, x: Tensor, output: str | int | None = None) -> Tensor:
    """One forward pass with the given tensors in place of the model's own.

    Args:
        model: The model; it keeps its own tensors.
        tensors: Parameters and buffers by name.
        x: Input, ``(N, ...)``.
        output: Which of several outputs counts: a key or an index; None is the first tensor.

    Returns:
        The output tensor.

    Raises:
        InvalidInput: If the model is wrapped for several devices.
    """
    if isinstance(model, nn.DataParallel):
        raise InvalidInput("a DataParallel wrapper cannot be read as paths; pass its .module")
    plain, made = _by_module(model, tensors)
    with made_where_used(model, made):
        # torch's own tying leaves the tensors of the call in a module that is used under two names: they are tied here.
        return first_tensor(functional_call(model, plain, (x,), tie_weights=False), output)


def _by_module(model: nn.Module, tensors: Tensors) -> tuple[dict[str, Tensor], list[tuple[nn.Module, dict[str, Made]]]]:
    """The tensors under every name of their parameter or buffer, and by module those that are made in it."""
    first: dict[Tensor, str] = {}
    plain: dict[str, Tensor] = {}
    found: list[tuple[nn.Module, dict[str, Made]]] = []
    for path, module in model.named_modules():
        made: dict[str, Made] = {}
        for own, entry in (*module._parameters.items(), *module._buffers.items()):
            name = f"{path}.{own}" if path else own
            if entry is None or (known := first.setdefault(entry, name)) not in tensors:
                continue
            tensor = tensors[known]
            if not isinstance(tensor, Made):
                plain[name] = tensor
            elif isinstance(module, torch.jit.ScriptModule):  # its parameters are not looked up in Python
                plain[name] = tensor.used()
            else:
                made[own] = tensor
        if made:
            found.append((module, made))
    return plain, found


def first_tensor(result: Any, output: str | int | None = None) -> Tensor:
    """The tensor that counts as the output of a network.

    Args:
        result: What the network returned: a tensor, or tuples, lists and mappings of them.
        output: A key (or attribute) or an index of ``result``; None is the first tensor found.

    Returns:
        The tensor.

    Raises:
        InvalidInput: If there is no such tensor.
    """
    if output is not None:
        if isinstance(result, Tensor):
            raise InvalidInput(f"the network has one output, a tensor; output must be None, not {output!r}")
        try:
            result = getattr(result, output) if isinstance(output, str) and hasattr(result, output) else result[output]
        except (KeyError, IndexError, TypeError) as error:
            known = f" (known: {', '.join(map(str, result))})" if isinstance(result, Mapping) else ""
            raise InvalidInput(f"the network has no output {output!r}{known}") from error
    if isinstance(result, Tensor):
        return result
    parts = result.values() if isinstance(result, Mapping) else result if isinstance(result, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, (Tensor, Mapping, tuple, list)):
            return first_tensor(part)
    raise InvalidInput(f"the network returned no tensor but {type(result).__name__}; name one with output=")

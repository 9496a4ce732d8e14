"""The state of PyTorch and of a model while it is scored: full precision, evaluation mode, nothing left behind."""

import contextlib
import copy
import operator
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_TF32: ContextVar[bool] = ContextVar("tf32_products", default=False)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run scoring code, and leave the model and torch's global state as they were: `evaluated`, without TF32."""
    with evaluated(model), _full_precision():
        yield


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode and uncompiled, autocast off, random generators forked."""
    # Training flags, generators and tensors that a forward pass stores on its modules come back also when an exception
    # is raised.
    modules = list(model.modules())
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device.index or 0 for device in devices]))
        for kind in {"cpu", *(device.type for device in devices)}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        # Transformer layers as they are written: their shortcut in evaluation mode leaves torch functions.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:  # somebody compiled something: run it as it was written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        grads = torch.is_grad_enabled()  # leaving inference mode would switch gradients on
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grads))
        stored = [(module, module.training, dict(vars(module)), _containers(module)) for module in modules]
        try:
            for module in modules:
                if module.training:
                    module.training = False
            yield
        finally:
            for module, training, before, containers in stored:
                if module.training != training:
                    module.training = training
                _put_back(module, before, containers)


_Containers = tuple[list[tuple[Any, Any]], list[Any]]


def _containers(module: nn.Module) -> _Containers:
    """The containers of a module (hooks among them) and those in them, with what they hold, and the empty ones."""
    # Not those of weights and parts, which the exporter changes meanwhile in another thread.
    waiting = [held for name, held in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")]
    found: dict[int, Any] = {}
    for held in waiting:
        if isinstance(held, (list, dict, set, deque)) and id(held) not in found:
            found[id(held)] = held
            waiting += held.values() if isinstance(held, dict) else held
    return [(held, held.copy()) for held in found.values() if held], [held for held in found.values() if not held]


def _put_back(module: nn.Module, before: Mapping[str, Any], containers: _Containers) -> None:
    """Undo what a forward pass left on a module: a count of its calls, activations, the weight of the call, hooks."""
    own, (filled, empty) = vars(module), containers
    if not _same(own, before):
        own.clear()
        own.update(before)
    for held in empty if any(empty) else ():
        held.clear()
    for held, content in filled:
        if not _same(held, content):
            held.clear()
            (held.update if isinstance(held, (dict, set)) else held.extend)(content)


def _same(held: Any, content: Any) -> bool:
    """Whether two containers have the same objects; most have."""
    pairs = [(held, content), *([(held.values(), content.values())] if isinstance(held, dict) else [])]
    return len(held) == len(content) and all(all(map(operator.is_, *pair)) for pair in pairs)


def copied(model: nn.Module) -> nn.Module:
    """A copy of a network, of activations that a forward pass left on it the values alone."""
    left = [part for module in model.modules() for part in tree_leaves(vars(module)) if isinstance(part, Tensor)]
    result: nn.Module = copy.deepcopy(model, {id(part): part.detach().clone() for part in left if not part.is_leaf})
    return result


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
    """Products in TF32 on GPUs that have it, also in what is `untouched` inside."""
    before = _TF32.set(True)
    try:
        with _full_precision():
            yield
    finally:
        _TF32.reset(before)


@contextlib.contextmanager
def uniform_precision() -> Iterator[None]:
    """The one precision of cuDNN with which the exporter, which computes nothing, can ask for it by its older name."""
    cudnn: Any = torch.backends.cudnn
    with _precision_of([cudnn.conv, cudnn.rnn], "tf32"):
        yield


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


def compute_dtype(model: nn.Module, tensors: Mapping[str, Any] | None = None) -> torch.dtype:
    """The precision in which a model is scored: float64 if a parameter or a tensor in its place is, else float32."""
    dtypes = {p.dtype for p in model.parameters()} | {tensor.dtype for tensor in (tensors or {}).values()}
    return torch.float64 if torch.float64 in dtypes else torch.float32

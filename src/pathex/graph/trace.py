"""From a module to its graph, by PyTorch's exporter."""

import inspect
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

from pathex.errors import InvalidInput, PathexError, UnsupportedOperation
from pathex.graph.fingerprint import fingerprint
from pathex.graph.functional import resolve
from pathex.graph.graph import Graph, Node
from pathex.graph.inputs import arguments
from pathex.graph.state import evaluated, uniform_precision

Output = str | int | None
"""Which of several outputs counts: a key or an index; None is the first tensor."""

_CACHED = 64  # graphs, without the tensors of their networks
_known: dict[str, Graph] = {}  # the last one that was asked for last
_one_at_a_time = threading.RLock()  # the exporter is not for several threads


def trace(model: nn.Module, example: Any, *, output: Output = None) -> Graph:
    """The graph of a network in evaluation mode, for any number of images.

    A network is traced once for each structure and shape of its images; its weights may change. Its structure is what
    its modules are, their parameters' names, shapes and sharing, and what they hold of numbers, text and other tensors.

    Args:
        model: The network; left as it is, also when tracing fails.
        example: Images ``(N, ...)``; or a tuple of positional arguments, a dictionary of keyword arguments, or
            `Inputs`, tensors or nested tuples, lists and dictionaries of them, the images first in each.
        output: Which of several outputs counts: a key or an index; None is the first tensor.

    Returns:
        The graph.

    Raises:
        UnsupportedOperation: If the exporter refuses the network; the message names the module and the reason.
        InvalidInput: If there is no such output, or the network is wrapped for several devices.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> print(trace(net, torch.ones(1, 3)))
        input                    input          Nx3              input()
        linear                   weighted       Nx4              linear(input, 0.weight, 0.bias)  0
        relu                     gate           Nx4              relu(linear)  1
        linear_1                 weighted       Nx2              linear(relu, 2.weight, 2.bias)  2
    """
    if isinstance(model, nn.DataParallel):
        raise InvalidInput("a DataParallel wrapper cannot be read as paths; pass its .module")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedOperation("a scripted network cannot be traced; pass the module that it was made of")
    args, kwargs = arguments(example)
    leaves, form = tree_flatten((args, kwargs))
    key = f"{fingerprint(model, leaves)} {form} {output!r}"
    graph = _once(key, partial(_traced, model, args, kwargs, output))
    if graph.fixed_batch is None:
        return graph
    count = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
    if count == graph.fixed_batch:
        return graph
    return _once(f"{key} {count}", partial(_traced, model, args, kwargs, output, dynamic=False))


def _once(key: str, make: Callable[[], Graph]) -> Graph:
    with _one_at_a_time:
        if key not in _known:
            _known[key] = make()
        graph = _known[key] = _known.pop(key)
        while len(_known) > _CACHED:
            del _known[next(iter(_known))]
        return graph


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer, and the first one for the same tensor."""
    first: dict[Tensor, str] = {}
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: first.setdefault(tensor, name) for name, tensor in named}


def _traced(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Output, dynamic: bool = True
) -> Graph:
    if dynamic:  # traced with one image, a program refuses other numbers
        args, kwargs = tree_map_only(Tensor, _two, (args, kwargs))
    shapes = tree_map_only(Tensor, lambda t: {0: Dim.AUTO} if t.dim() else {}, (args, kwargs))
    args, kwargs = tree_map_only(Tensor, partial(_in_precision_of, model), (args, kwargs))
    with evaluated(model), uniform_precision(), torch.no_grad(), warnings.catch_warnings(), _unlogged():
        warnings.simplefilter("ignore")  # what the exporter says of tensors that a forward pass leaves on its modules
        try:
            # As the exporter takes them: by the names of arguments.
            bound = inspect.signature(model.forward).bind(*shapes[0], **shapes[1]).arguments if dynamic else None
            program = _exported(model, args, kwargs, bound)
            nodes, inputs, leaves = resolve(program, first_names(model))
        except PathexError:
            raise
        except Exception as error:  # whatever the code of a network raises when it is traced
            raise UnsupportedOperation(_reason(model, error)) from error
    result = program.call_spec.out_spec.unflatten(leaves)
    # Without a range for it the exporter has bound the number of images, as the network asked for it.
    fixed = None if program.range_constraints else next((node.shape[0] for node in inputs if node.shape), None)
    return Graph(nodes, inputs, first_tensor(result, output, Node), fixed)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> ExportedProgram:
    export = partial(torch.export.export, model, args, kwargs or None, dynamic_shapes=shapes, strict=False)
    try:
        return export()
    except RuntimeError:
        with _DataByDetach():  # which costs time, and few networks need
            return export()


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without the log of what the exporter then raises, and without the graph that it prints."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


class _DataByDetach(TorchFunctionMode):
    """The exporter does not see ``tensor.data``."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _two(tensor: Tensor) -> Tensor:
    if not tensor.dim():
        return tensor
    return tensor[:2].detach() if len(tensor) > 1 else torch.cat([tensor.detach(), tensor.detach()])


def _in_precision_of(model: nn.Module, tensor: Tensor) -> Tensor:
    """Floating-point inputs as the network takes them; readings have a precision of their own."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), tensor.dtype)
    return tensor.detach().to(own) if tensor.is_floating_point() else tensor


def first_tensor(result: Any, output: Output = None, leaf: type = Tensor) -> Any:
    """The tensor (a ``leaf``) that counts of what a network returned: that of a key or an index, or the first one."""
    if output is not None:
        if isinstance(result, leaf):
            raise InvalidInput(f"the network has one output, a tensor; output must be None, not {output!r}")
        try:
            by_key = isinstance(result, (Mapping, tuple, list)) and output not in getattr(result, "_fields", ())
            result = result[output] if by_key else getattr(result, str(output))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            known = f" (known: {', '.join(map(str, result))})" if isinstance(result, Mapping) else ""
            raise InvalidInput(f"the network has no output {output!r}{known}") from error
    if isinstance(result, leaf):
        return result
    parts = result.values() if isinstance(result, Mapping) else result if isinstance(result, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, (leaf, Mapping, tuple, list)):
            return first_tensor(part, None, leaf)
    raise InvalidInput(f"the network returned no tensor but {type(result).__name__}; name one with output=")


# -- what the exporter says ------------------------------------------------------------------------------------------


_END_OF_REASON = re.compile(
    r" (?:From user code|The following call raised|Set TORCH|For more information|\(Size-like|Traceback)"
)


def _reason(model: nn.Module, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = _END_OF_REASON.split(text)[0]
    path = failing_module(model, error)
    kind = "" if path is None else type(model.get_submodule(path)).__name__
    where = "" if path is None else f" in module {path or '(the whole network)'!r} ({kind})"
    return f"{type(model).__name__} cannot be traced{where}: {type(error).__name__}: {text[:300]}"


def failing_module(model: nn.Module, error: Exception) -> str | None:
    """The path of the innermost module of a network whose forward pass raised."""
    names = {module: name for name, module in model.named_modules()}
    found, trail = None, error.__traceback__
    while trail is not None:
        owner = trail.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner in names:
            found = names[owner]
        trail = trail.tb_next
    return found

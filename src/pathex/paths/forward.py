"""The plain forward pass of any network: nothing is refused, and BatchNorm uses the statistics that it is told to.

The readings of paths know every operator that they meet. What is here needs no rules and no trace: `forward` for
methods that differentiate the network itself, and `calibrate` for the statistics that the masked network produces.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from pathex.distributed import ALONE, Processes
from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import (
    Images,
    Output,
    arguments,
    breaks_in_channels_last,
    compute_dtype,
    each,
    first_tensor,
    has_convolution_that_breaks,
    untouched,
)
from pathex.paths.moments import Moments, finish, merge, moments_of

Statistics = Sequence[Moments] | Literal["running", "train"]
"""What BatchNorm uses: moments in the order of the calls, the stored ones, or those of the batch as in training."""


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Torch's own has no second derivative."""
    gate = F.relu6(input + 3) / 6
    return input.copy_(gate) if inplace else gate


def _normalize(input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """Torch's own has no second derivative at zero, where padding puts whole tokens."""
    if p != 2 or out is not None:
        return F.normalize(input, p, dim, eps, out)
    return input * input.square().sum(dim, keepdim=True).clamp_min(eps**2).rsqrt()


_WRITTEN_OUT: Mapping[Callable[..., Any], Callable[..., Any]] = {F.hardsigmoid: _hardsigmoid, F.normalize: _normalize}

_BY_STRIDES = {torch.as_strided, Tensor.as_strided, Tensor.stride}
_BOUND_TO_LAYOUT = "view size is not compatible"  # torch's words for a view that the layout does not allow


def _breaks(
    input: Any, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> bool:
    return breaks_in_channels_last(weight.shape, stride, groups)


class _Normalised(TorchFunctionMode):
    """Runs every function as it is but BatchNorm of what depends on the input.

    Without statistics that uses the moments of what reaches it, as constants, which are kept. With ``to_next`` the pass
    ends at the first BatchNorm whose moments are not known.
    """

    def __init__(self, statistics: Statistics | None = None, *, to_next: bool = False) -> None:
        super().__init__()
        self.statistics, self.to_next = statistics, to_next
        self.start(channels_last=False)

    def start(self, *, channels_last: bool) -> None:
        """Forget the pass before."""
        self.channels_last = channels_last
        self.moments: list[Moments] = []
        self.entries = [0, 0]
        self._reached = WeakIdKeyDictionary()

    def reach(self, result: Any) -> Any:
        """Note that a tensor, or each in a tuple or list, depends on the input."""
        for tensor in [result] if isinstance(result, Tensor) else result if isinstance(result, (tuple, list)) else ():
            if isinstance(tensor, Tensor):
                self._reached[tensor] = True
                self.entries = [self.entries[0] + tensor.numel(), max(self.entries[1], tensor.numel())]
        return result

    def _depends(self, values: Any) -> bool:
        return any(
            self._depends(value) if isinstance(value, (tuple, list)) else value in self._reached
            for value in values
            if isinstance(value, (Tensor, tuple, list))
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.channels_last and (func in _BY_STRIDES or (func is torch.conv2d and _breaks(*args, **kwargs))):
            raise RuntimeError(_BOUND_TO_LAYOUT)
        depends = self._depends((*args, *kwargs.values()))
        stored = func is F.batch_norm and self.statistics == "train" and _stored(*args, **kwargs) is not None
        if func is F.batch_norm and (depends or stored):
            return self.reach(self._batch_norm(*args, **kwargs))
        result = _WRITTEN_OUT.get(func, func)(*args, **kwargs)
        if not depends:
            return result
        if result is None and args and isinstance(args[0], Tensor):  # what is written into a tensor
            self.reach(args[0])
        return self.reach(result)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if self.statistics == "train":
            if input.numel() // input.shape[1] < 2:
                raise InvalidInput(
                    "BatchNorm on the statistics of a batch needs more than one value a channel: pass larger batches, "
                    "or a calibration that is not 'train'"
                )
            return F.batch_norm(input, None, None, weight, bias, True, 0.0, eps)
        stored = _stored(input, running_mean, running_var)
        number = len(self.moments)
        if self.statistics == "running" and stored is not None:
            moments = stored
        elif self.statistics is not None and not isinstance(self.statistics, str) and number < len(self.statistics):
            moments = self.statistics[number]
        elif self.to_next:
            raise _Reached(moments_of(input), stored)
        else:
            moments = finish(moments_of(input.detach()), stored)
        self.moments.append(moments)
        return F.batch_norm(input, moments.mean.to(input), moments.var.to(input), weight, bias, False, 0.0, eps)


@dataclass(eq=False)
class _Reached(Exception):
    moments: tuple[Tensor, Tensor, int]
    stored: Moments | None


def _stored(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, *_: Any, **__: Any
) -> Moments | None:
    return None if running_mean is None or running_var is None else Moments(running_mean, running_var)


def tensors_of(model: nn.Module, replaced: Mapping[str, Tensor] | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters and buffers of a functional call by name, cast; replaced ones as they are, masks as 0 and 1."""
    own: dict[str, Tensor] = dict(model.named_parameters())
    # What a forward pass writes to buffers does not reach the model.
    own |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors = {name: (t.to(dtype) if t.is_floating_point() else t).detach() for name, t in own.items()}
    for name, tensor in (replaced or {}).items():
        if name not in tensors:
            raise InvalidInput(f"the model has no parameter or buffer named {name!r}")
        tensors[name] = tensor.to(dtype) if tensor.dtype == torch.bool else tensor
    return tensors


def forward(
    model: nn.Module,
    x: Images,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    statistics: Statistics = "running",
    output: Output = None,
) -> Tensor:
    """The output of the network itself, in evaluation mode, differentiable as often as its functions are.

    Attention runs on torch's own products (the fused kernels have no second derivative). A network that checkpoints its
    activations is refused: its backward pass would run it again with its own weights.

    Args:
        model: The network; left as it was.
        x: Images ``(N, ...)``.
        tensors: Tensors that stand in for parameters or buffers (masked weights, for instance), by name.
        statistics: See `Statistics`; gradients flow through those of the batch as in training.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        The output.
    """
    dtype = compute_dtype(model, tensors)
    with untouched(model), sdpa_kernel(SDPBackend.MATH), _without_checkpoints():
        return _run(model, tensors_of(model, tensors, dtype), x.to(dtype), output, _Normalised(statistics))


_CHECKPOINTS = "the network checkpoints its activations (torch.utils.checkpoint): switch gradient checkpointing off"


@contextlib.contextmanager
def _without_checkpoints() -> Iterator[None]:
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINTS):  # with which checkpoints work
            yield
    except RuntimeError as error:
        if _CHECKPOINTS in str(error):
            raise UnsupportedOperation(_CHECKPOINTS) from error
        raise


def _run(model: nn.Module, tensors: Mapping[str, Tensor], x: Images, output: Output, mode: _Normalised) -> Tensor:
    if isinstance(model, nn.DataParallel):
        raise InvalidInput("a DataParallel wrapper cannot be scored; pass its .module")
    if _faster_in_channels_last(model, x):
        mode.start(channels_last=True)
        try:
            return _through(
                model, tensors, each(x, partial(torch.clone, memory_format=torch.channels_last)), output, mode
            )
        except RuntimeError as error:
            if _BOUND_TO_LAYOUT not in str(error):
                raise
    mode.start(channels_last=False)
    own = each(x, partial(torch.clone, memory_format=torch.contiguous_format), floating=False)  # it may write into it
    return _through(model, tensors, own, output, mode)


def _through(model: nn.Module, tensors: Mapping[str, Tensor], x: Images, output: Output, mode: _Normalised) -> Tensor:
    with mode:
        own = _under_every_name(model, tensors)
        args, kwargs = arguments(each(x, mode.reach, floating=False))
        outputs = functional_call(model, own, args, kwargs, tie_weights=False)
        return first_tensor(outputs, output).contiguous()


def _faster_in_channels_last(model: nn.Module, x: Images) -> bool:
    if not isinstance(x, Tensor) or x.dim() != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    return any(isinstance(module, nn.Conv2d) for module in model.modules()) and not has_convolution_that_breaks(model)


def _under_every_name(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a call, a shared one under each of its modules."""
    # A module that is used under two names has its own once: torch would leave the tensors of the call in it.
    first: dict[Tensor, str] = {}
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        how: dict[str, Any] = {"prefix": path, "recurse": False, "remove_duplicate": False}
        for name, entry in (*module.named_parameters(**how), *module.named_buffers(**how)):
            if (known := first.setdefault(entry, name)) in tensors:
                found[name] = tensors[known]
    return found


def unreached(model: nn.Module, names: Sequence[str], x: Images, *, output: Output = None) -> list[str]:
    """Those of some parameters that the output of a forward pass in evaluation mode does not depend on."""
    own = dict(model.named_parameters())
    dtype = compute_dtype(model)
    leaves = {name: own[name].detach().to(dtype, copy=True).requires_grad_() for name in names}
    with torch.enable_grad():
        result = forward(model, x, tensors=leaves, output=output)
        if not result.requires_grad:
            return list(names)
        found = torch.autograd.grad(result.sum(), list(leaves.values()), allow_unused=True)
    return [name for name, derivative in zip(names, found, strict=True) if derivative is None]


def footprint(model: nn.Module, x: Images, *, output: Output = None) -> tuple[int, int]:
    """Entries of the results of all functions of a forward pass, and of the largest result."""
    dtype, mode = compute_dtype(model), _Normalised("running")
    with untouched(model), torch.no_grad():
        _run(model, tensors_of(model, None, dtype), x.to(dtype), output, mode)
    return mode.entries[0], mode.entries[1]


def calibrate(
    model: nn.Module,
    x: Images,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
    output: Output = None,
    processes: Processes = ALONE,
) -> Sequence[Moments]:
    """Mean and biased variance of what reaches each BatchNorm, over all images together, layer after layer.

    Every layer sees the outputs of the layers before it normalised by their own calibrated moments. The network's
    stored statistics are neither used nor changed. With a chunk of images in memory at a time this costs one partial
    forward pass for each BatchNorm call, with the same result up to rounding; processes share the chunks between them.

    Returns:
        Moments by BatchNorm call.
    """
    dtype = compute_dtype(model, tensors)
    with untouched(model), torch.no_grad():
        own = tensors_of(model, tensors, dtype)
        x = x.to(dtype)
        if chunk is None or chunk >= len(x):
            whole = _Normalised()
            _run(model, own, x, output, whole)
            return whole.moments
        known: list[Moments] = []
        while True:
            parts = processes.map(x.split(chunk), partial(_next_norm, model, own, known, output), x.device)
            reached = [part for part in parts if part is not None]
            if not reached:
                return known
            total, stored = reduce(merge, (part for part, _ in reached)), reached[0][1]
            known.append(finish(total, None if stored is None else Moments(*stored)))


def _next_norm(
    model: nn.Module, tensors: Mapping[str, Tensor], known: Sequence[Moments], output: Output, x: Images
) -> tuple[tuple[Tensor, Tensor, int], tuple[Tensor, Tensor] | None] | None:
    """What reaches the first BatchNorm that is not known yet, and the mean and variance that it keeps."""
    try:
        _run(model, tensors, x, output, _Normalised(known, to_next=True))
    except _Reached as reached:
        return reached.moments, None if reached.stored is None else (reached.stored.mean, reached.stored.var)
    return None

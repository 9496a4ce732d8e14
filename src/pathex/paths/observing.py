"""The plain forward pass of any network: nothing is refused, and BatchNorm uses the statistics that it is told to.

The readings of paths know every function that they meet. What is here needs no rules: `forward` for methods that
differentiate the network itself, and `calibrate` for the statistics that the masked network produces.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pathex.errors import InvalidInput
from pathex.paths._made import Made, Tensors, checkpoints, saved_to_be_made
from pathex.paths._moments import Moments, finish, merge, moments_of
from pathex.paths._network import compute_dtype, run, tensors_of, untouched
from pathex.paths._reading import (
    CREATIONS,
    FORMED_LIKE,
    QUERIES,
    Reading,
    is_in_place,
    spellings,
    tensors_in,
    without_autocast,
)
from pathex.processes import ALONE, Processes

__all__ = ["Observe", "Statistics", "calibrate", "forward"]

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


_WRITTEN_OUT: Mapping[Callable[..., Any], Callable[..., Any]] = {
    **dict.fromkeys(spellings("hardsigmoid"), _hardsigmoid),
    **dict.fromkeys(spellings("hardsigmoid_"), partial(_hardsigmoid, inplace=True)),
    F.normalize: _normalize,
}


@dataclass(eq=False)
class Observe(Reading):
    """Runs every function as it is; knows which tensors depend on the input.

    Attributes:
        statistics: What BatchNorm uses; None: the moments of what reaches it, as constants, which are kept.
        moments: The moments that each BatchNorm used, in the order of the calls; empty for ``train``.
    """

    model: nn.Module
    tensors: Tensors
    statistics: Statistics | None = None
    moments: list[Moments] = field(default_factory=list)

    def __post_init__(self) -> None:
        Reading.__init__(self, self.model, self.tensors)

    def carries(self, value: Any) -> bool:
        """Whether a value is a tensor that depends on the input, as far as functions could be intercepted.

        Args:
            value: Any argument.

        Returns:
            True for a tensor that does.
        """
        if not isinstance(value, Tensor):
            return False
        return any(getattr(t, "_pathex_reading", None) is self for t in (value, value._base))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in QUERIES:
            return func(*args, **kwargs)
        carried = any(self.carries(tensor) for tensor in tensors_in((args, kwargs)))
        stored = (
            self.statistics == "train"
            and func is F.batch_norm
            and (args[1] if len(args) > 1 else kwargs.get("running_mean")) is not None
        )
        if is_in_place(func):
            self._refuse_parameter(args[0], func)
        if not (carried or stored) or (func in FORMED_LIKE and not self.carries(args[0])):
            return self.on_constant(func, args, kwargs)
        if func in CREATIONS:
            return func(*args, **kwargs)
        # Its backward pass would run the network once more, with the module's tensors in place of those of the call.
        if torch.is_grad_enabled() and checkpoints():
            raise self.checkpointed()
        with without_autocast():
            if func is F.batch_norm:
                result = _batch_norm(self, *args, **kwargs)
            else:
                result = _WRITTEN_OUT.get(func, func)(*args, **kwargs)
        if is_in_place(func):
            self.carry([args[0] if args[0]._base is None else args[0]._base, args[0]])
        return self.carry(result)

    def measure(self, x: Tensor, stored: Moments | None) -> Moments:
        """The moments of what reaches a BatchNorm layer.

        Args:
            x: ``(N, C, ...)``.
            stored: The statistics that the layer keeps.

        Returns:
            Mean and biased variance.
        """
        return finish(moments_of(x.detach()), stored)


def _batch_norm(
    reading: Observe,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    stored = None if running_mean is None or running_var is None else Moments(running_mean, running_var)
    if reading.statistics == "train":
        if input.numel() // input.shape[1] < 2:
            raise InvalidInput(
                "BatchNorm on the statistics of a batch needs more than one value a channel: pass larger batches, or "
                "calibration='batch' or 'running'"
            )
        return F.batch_norm(input, None, None, weight, bias, True, 0.0, eps)
    index = len(reading.moments)
    if reading.statistics == "running" and stored is not None:
        moments = stored
    elif isinstance(reading.statistics, Sequence) and index < len(reading.statistics):
        moments = reading.statistics[index]  # type: ignore[assignment]
    else:
        moments = reading.measure(input, stored)
    reading.moments.append(moments)
    return F.batch_norm(input, moments.mean.to(input), moments.var.to(input), weight, bias, False, 0.0, eps)


def forward(
    model: nn.Module,
    x: Tensor,
    *,
    tensors: Tensors | None = None,
    statistics: Statistics = "running",
    output: str | int | None = None,
) -> Tensor:
    """The output of the network itself, in evaluation mode, differentiable as often as its functions are.

    Attention runs on torch's own products (the fused kernels have no second derivative).

    Args:
        model: The network; left as it was, its stored statistics too.
        x: Images ``(N, ...)``.
        tensors: Tensors that stand in for parameters or buffers (masked weights, for instance), by name.
        statistics: What BatchNorm uses: moments by call (see `calibrate`), ``running`` for the stored ones, ``train``
            for those of this batch, through which gradients flow as in training.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        The output tensor.

    Raises:
        InvalidInput: If a BatchNorm on the statistics of the batch gets a single value a channel.
        UnsupportedOperation: If the network writes into its parameters, or checkpoints its activations.
    """
    dtype = compute_dtype(model, tensors)
    with untouched(model), sdpa_kernel(SDPBackend.MATH):
        own = tensors_of(model, tensors, dtype)
        reading = Observe(model, own, statistics)
        start = x.to(dtype).clone()  # the network may write into its input
        made = any(isinstance(tensor, Made) for tensor in own.values())
        with saved_to_be_made() if made else contextlib.nullcontext(), reading:
            return run(model, own, reading.carry(start), output)


# -- calibration -------------------------------------------------------------------------------------------------------


class _Reached(Exception):
    def __init__(self, moments: tuple[Tensor, Tensor, int], stored: Moments | None) -> None:
        super().__init__()
        self.moments = moments
        self.stored = stored


@dataclass(eq=False)
class _UpToNextNorm(Observe):
    """A forward pass that ends at the first BatchNorm whose moments are not known yet."""

    def measure(self, x: Tensor, stored: Moments | None) -> Moments:
        raise _Reached(moments_of(x), stored)


def calibrate(
    model: nn.Module,
    x: Tensor,
    *,
    tensors: Tensors | None = None,
    chunk: int | None = None,
    output: str | int | None = None,
    processes: Processes = ALONE,
) -> Sequence[Moments]:
    """Mean and biased variance of what reaches each BatchNorm, over all images together, layer after layer.

    Every layer sees the outputs of the layers before it normalised by their own calibrated moments. The network's
    stored statistics are neither used nor changed.

    Args:
        model: The network; left as it was.
        x: Calibration images ``(N, ...)``.
        tensors: Tensors that stand in for parameters, by name.
        chunk: Images in memory at a time. None runs one forward pass with all of them; a number bounds memory and
            costs one partial forward pass for each BatchNorm call, with the same result up to rounding.
        output: Which of several outputs counts.
        processes: Those that share the chunks between them; each has all images and gets the same moments.

    Returns:
        Moments by BatchNorm call.
    """
    dtype = compute_dtype(model, tensors)
    with untouched(model), torch.no_grad():
        own = tensors_of(model, tensors, dtype)
        x = x.to(dtype)
        if chunk is None or chunk >= len(x):
            whole = Observe(model, own)
            with whole:
                run(model, own, whole.carry(x.clone()), output)
            return whole.moments
        known: list[Moments] = []
        while True:
            up_to_next = partial(_next_norm, model, own, known, output)
            parts = processes.each(x.split(chunk), up_to_next, x.device)
            reached = [part for part in parts if part is not None]
            if not reached:
                return known
            total, stored = reached[0]
            for part, _ in reached[1:]:
                total = merge(total, part)
            known.append(finish(total, None if stored is None else Moments(*stored)))


def _next_norm(
    model: nn.Module, tensors: Tensors, known: list[Moments], output: str | int | None, x: Tensor
) -> tuple[tuple[Tensor, Tensor, int], tuple[Tensor, Tensor] | None] | None:
    """What reaches the first BatchNorm that is not known yet, and the mean and variance that it keeps."""
    reading = _UpToNextNorm(model, tensors, known)
    try:
        with reading:
            run(model, tensors, reading.carry(x.clone()), output)
    except _Reached as reached:
        stored = reached.stored
        return reached.moments, None if stored is None else (stored.mean, stored.var)
    return None

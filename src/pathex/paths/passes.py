"""The three readings as functions: `record`, `replay`, `replay_open`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.paths import (  # noqa: F401  (they fill the tables of rules)
    _affine,
    _attention,
    _choices,
    _gates,
    _norms,
    _pools,
    _products,
    _smooth,
    _structure,
)
from pathex.paths._effective import EffectiveReplay
from pathex.paths._made import Tensors, saved_to_be_made
from pathex.paths._moments import Moments
from pathex.paths._network import compute_dtype, run, tensors_of, untouched
from pathex.paths._readings import Coefficients, PerSample, Record, Replay, Site, Smooth

__all__ = ["Recording", "record", "replay", "replay_open"]


@dataclass(frozen=True)
class Recording:
    """What a recorded forward pass leaves.

    Attributes:
        output: Output of the network, ``(N, ...)``.
        tape: The coefficient of every non-linear site, in the order of the calls.
        statistics: The moments that every BatchNorm used, in the order of the calls.
        normalised: The weights of convolutions whose results BatchNorm alone uses, and the shapes of these results.
    """

    output: Tensor
    tape: Sequence[Site]
    statistics: Sequence[Moments]
    normalised: Mapping[str, Sequence[torch.Size]] = field(default_factory=dict)


def record(
    model: nn.Module,
    x: Tensor,
    *,
    tensors: Tensors | None = None,
    calibration: Literal["batch", "running"] | Sequence[Moments] = "batch",
    smooth: Smooth = "secant",
    output: str | int | None = None,
) -> Recording:
    """Read the plain forward pass and keep the coefficient of every non-linear site.

    Args:
        model: The network; left as it was.
        x: Images ``(N, ...)``.
        tensors: Tensors that stand in for parameters or buffers (masked weights, for instance), by name.
        calibration: ``batch``: every BatchNorm uses the biased moments of what reaches it; ``running``: the stored
            statistics; or moments by BatchNorm call.
        smooth: The coefficient of a smooth activation phi with phi(0) = 0: ``secant`` phi(x) / x, ``tangent`` phi'(x),
            or ``mixed``: the secant on the way and the tangent on the way back.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        Output, tape and statistics.

    Raises:
        InvalidInput: If ``calibration`` or ``smooth`` is not known.
        UnsupportedOperation: If an operation has no rule.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
        >>> x = torch.randn(4, 2, dtype=torch.float64)
        >>> recording = record(net, x)
        >>> torch.allclose(replay(net, x, recording, coefficients="plain"), net(x))
        True
    """
    if isinstance(calibration, str) and calibration not in ("batch", "running"):
        raise InvalidInput(f"unknown calibration {calibration!r}. Known: batch, running")
    if smooth not in get_args(Smooth):
        raise InvalidInput(f"unknown smooth {smooth!r}. Known: {', '.join(get_args(Smooth))}")
    dtype = compute_dtype(model, tensors)
    with untouched(model), torch.enable_grad():
        own = tensors_of(model, tensors, dtype)
        reading = Record(model, own, None if calibration == "batch" else calibration, smooth)
        # Whatever depends on the input has a gradient here, so that what cannot be intercepted shows itself.
        start = x.detach().to(dtype, copy=True).requires_grad_().clone()
        with torch.autograd.graph.saved_tensors_hooks(_forget, _forget), reading:
            result = run(model, own, reading.carry(start), output)
    reading.uses(result)
    return Recording(_reached(reading, result).detach(), reading.sites, reading.moments, reading.normalised())


def _forget(tensor: Any) -> Any:
    """Saves nothing for the backward pass, which never comes."""


def replay(
    model: nn.Module,
    x: Tensor,
    recording: Recording,
    *,
    tensors: Tensors | None = None,
    coefficients: Coefficients = "squared",
    output: str | int | None = None,
) -> Tensor:
    """Read the network as a linear map of its input, with the gates of a recorded pass.

    Biases and shifts are dropped. Differentiable with respect to ``tensors``.

    Args:
        model: The network; left as it was.
        x: Input of the map, ``(N, ...)``, used as given: pass ``x**2`` for squared paths.
        recording: The recorded pass over the same images.
        tensors: Tensors that stand in for parameters, by name.
        coefficients: ``plain``: weights and coefficients as they are. ``squared``: weights, BatchNorm coefficients and
            fixed coefficients (average pools, interpolation, constants) squared where they act, gates squared.
            ``ones``: weights as given in ``tensors`` (ones, or a mask), BatchNorm counts 1, fixed coefficients in
            absolute value, gates squared. ``absolute``: absolute values.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        Output of the linear map.
    """
    how = (recording.tape, recording.statistics, coefficients)
    return _linear(model, tensors, x, output, *how, normalised=recording.normalised)


def replay_open(
    model: nn.Module,
    x: Tensor,
    *,
    statistics: Sequence[Moments] | Literal["running"],
    tensors: Tensors | None = None,
    coefficients: Coefficients = "squared",
    pools: Literal["sum", "max"] = "sum",
    per_sample: PerSample = "refuse",
    output: str | int | None = None,
) -> Tensor:
    """Read the network with every gate open: all paths.

    Args:
        model: The network; left as it was.
        x: Input of the map, ``(N, ...)``, used as given.
        statistics: Moments by BatchNorm call, or ``running`` for the stored ones.
        tensors: Tensors that stand in for parameters, by name.
        coefficients: As for `replay`.
        pools: What a max pool does with its window: ``sum``, or ``max`` of what arrives.
        per_sample: Coefficients that belong to a sample (LayerNorm, attention, gates): ``refuse``, or ``one``: they
            count 1.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        Output of the linear map (linear up to ``pools="max"``).
    """
    return _linear(model, tensors, x, output, None, statistics, coefficients, pools, per_sample)


def _linear(
    model: nn.Module,
    tensors: Tensors | None,
    x: Tensor,
    output: str | int | None,
    *how: Any,
    **more: Any,
) -> Tensor:
    dtype = compute_dtype(model, tensors)
    with untouched(model):
        own = tensors_of(model, tensors, dtype)
        reading = EffectiveReplay(model, own, *how, **more)
        with saved_to_be_made(), reading:
            result = run(model, own, reading.carry(x.to(dtype, copy=True)), output)
    reading.finish()
    result = _reached(reading, result)
    result.__dict__.pop("_pathex_reading", None)
    return result


def _reached(reading: Record | Replay, result: Tensor) -> Tensor:
    if not reading.carries(result):
        raise reading.unsupported("the output", "no path from the input reaches it through operations that can be read")
    return result

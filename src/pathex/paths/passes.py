"""The three readings as functions: `record`, `replay`, `replay_open`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.paths import _affine, _gates, _norms, _pools, _structure  # noqa: F401  (they fill the tables of rules)
from pathex.paths._moments import Moments
from pathex.paths._network import compute_dtype, run, tensors_of, untouched
from pathex.paths._readings import Coefficients, Record, Replay, Site

__all__ = ["Recording", "record", "replay", "replay_open"]


@dataclass(frozen=True)
class Recording:
    """What a recorded forward pass leaves.

    Attributes:
        output: Output of the network, ``(N, ...)``.
        tape: The coefficient of every non-linear site, in the order of the calls.
        statistics: The moments that every BatchNorm used, in the order of the calls.
    """

    output: Tensor
    tape: Sequence[Site]
    statistics: Sequence[Moments]


def record(
    model: nn.Module,
    x: Tensor,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    calibration: Literal["batch", "running"] | Sequence[Moments] = "batch",
    output: str | int | None = None,
) -> Recording:
    """Read the plain forward pass and keep the coefficient of every non-linear site.

    Args:
        model: The network; left as it was.
        x: Images ``(N, ...)``.
        tensors: Tensors that stand in for parameters or buffers (masked weights, for instance), by name.
        calibration: ``batch``: every BatchNorm uses the biased moments of what reaches it; ``running``: the stored
            statistics; or moments by BatchNorm call.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        Output, tape and statistics.

    Raises:
        InvalidInput: If ``calibration`` is not known.

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
    own = tensors_of(model, tensors, _dtype(model, tensors))
    reading = Record(model, own, None if calibration == "batch" else calibration)
    with untouched(model), torch.no_grad(), reading:
        result = run(model, own, reading.carry(x.clone()), output)
    return Recording(_reached(reading, result), reading.sites, reading.moments)


def replay(
    model: nn.Module,
    x: Tensor,
    recording: Recording,
    *,
    tensors: Mapping[str, Tensor] | None = None,
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
    own = tensors_of(model, tensors, _dtype(model, tensors))
    reading = Replay(model, own, recording.tape, recording.statistics, coefficients)
    with untouched(model), reading:
        result = run(model, own, reading.carry(x.clone()), output)
    return _reached(reading, result)


def replay_open(
    model: nn.Module,
    x: Tensor,
    *,
    statistics: Sequence[Moments] | Literal["running"],
    tensors: Mapping[str, Tensor] | None = None,
    coefficients: Coefficients = "squared",
    pools: Literal["sum", "max"] = "sum",
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
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        Output of the linear map (linear up to ``pools="max"``).
    """
    own = tensors_of(model, tensors, _dtype(model, tensors))
    reading = Replay(model, own, None, statistics, coefficients, pools)
    with untouched(model), reading:
        result = run(model, own, reading.carry(x.clone()), output)
    return _reached(reading, result)


def _dtype(model: nn.Module, tensors: Mapping[str, Tensor] | None) -> torch.dtype:
    wide = any(tensor.dtype == torch.float64 for tensor in (tensors or {}).values())
    return torch.float64 if wide else compute_dtype(model)


def _reached(reading: Record | Replay, result: Tensor) -> Tensor:
    if not reading.carries(result):
        raise reading.unsupported("the output", "no path from the input reaches it through operations that can be read")
    return result

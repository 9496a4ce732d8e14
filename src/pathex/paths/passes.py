"""The three readings of a network as functions: `record`, `replay`, `replay_open`."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from pathex.errors import InvalidInput, UnsupportedOperation, check_name
from pathex.graph import Output, Tensors, compute_dtype, each, tensors_in, trace, untouched
from pathex.paths.linear import NO_PATH, Coefficients, Linear, PerSample, Pools, inputs_of, run_linear
from pathex.paths.lowering import lowered
from pathex.paths.moments import Moments
from pathex.paths.recording import Record, Recording, Smooth, Statistics
from pathex.paths.weights import Weights

Given = Weights | Tensors | None


def record(
    model: nn.Module,
    x: Any,
    *,
    tensors: Given = None,
    calibration: Statistics = "batch",
    smooth: Smooth = "secant",
    output: Output = None,
) -> Recording:
    """Read the plain forward pass and keep the coefficient of every non-linear site.

    Args:
        model: The network; left as it was.
        x: Images ``(N, ...)``, or a tuple of arguments, or a dictionary of keyword arguments.
        tensors: Given that stand in for parameters or buffers (masked weights, for instance), by name.
        calibration: ``batch``: every BatchNorm uses the biased moments of what reaches it; ``running``: the stored
            statistics; or moments by BatchNorm call.
        smooth: The coefficient of a smooth activation phi with phi(0) = 0: ``secant`` phi(x) / x, ``tangent`` phi'(x),
            or ``mixed``: the secant on the way and the tangent on the way back.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        Output, tape and statistics.

    Raises:
        InvalidInput: If ``calibration`` or ``smooth`` is not known.
        UnsupportedOperation: If the network cannot be traced, or an operation has no rule.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
        >>> x = torch.randn(4, 2, dtype=torch.float64)
        >>> recording = record(net, x)
        >>> torch.allclose(replay(net, x, recording, coefficients="plain"), net(x))
        True
    """
    if isinstance(calibration, str):
        check_name("calibration", calibration, ("batch", "running"))
    check_name("smooth", smooth, get_args(Smooth))
    graph, weights = lowered(trace(model, x, output=output)), _weights(model, tensors)
    if graph.output not in graph.carried:
        raise UnsupportedOperation(NO_PATH)
    reading = Record(graph, weights, calibration, smooth)
    with untouched(model):
        return reading.recording(*tensors_in(each(x, lambda tensor: tensor.detach().to(weights.dtype))))


def replay(
    model: nn.Module,
    x: Any,
    recording: Recording,
    *,
    tensors: Given = None,
    coefficients: Coefficients = "squared",
    output: Output = None,
) -> Tensor:
    """Read the network as a linear map of its input, with the gates of a recorded pass.

    Biases and shifts are dropped.

    Args:
        model: The network; left as it was.
        x: Input of the map, ``(N, ...)``, used as given: pass ``x**2`` for squared paths.
        recording: The recorded pass over the same images.
        tensors: Given that stand in for parameters, by name.
        coefficients: ``plain``: weights and coefficients as they are. ``squared``: weights, BatchNorm coefficients and
            fixed coefficients (average pools, interpolation, constants) squared where they act, gates squared.
            ``ones``: weights as given in ``tensors`` (ones, or a mask), BatchNorm counts 1, fixed coefficients in
            absolute value, gates squared. ``absolute``: absolute values, gates squared.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        Output of the linear map.

    Raises:
        InvalidInput: If the recording is not of this network, output, shape and number of images, or
            ``coefficients`` is not known.
    """
    graph = lowered(trace(model, x, output=output))
    seen, number = recording.output.shape, len(inputs_of(x))
    by_image = graph.output.batched and graph.output.shape == (2, *seen[1:])
    other = graph is not recording.graph and str(graph) != str(recording.graph)  # the same may be traced twice
    if other or (by_image and number != seen[0]):
        raise InvalidInput("the recording is of another network, another output or images of another shape or number")
    reading = Linear(recording.graph, _weights(model, tensors), recording.tape, recording.statistics, coefficients)
    return _read(model, x, reading)


def replay_open(
    model: nn.Module,
    x: Any,
    *,
    statistics: Sequence[Moments] | Literal["running"],
    tensors: Given = None,
    coefficients: Coefficients = "squared",
    pools: Pools = "sum",
    per_sample: PerSample = "refuse",
    output: Output = None,
) -> Tensor:
    """Read the network with every gate open: all paths. A product is zero where one of its factors is.

    Args:
        model: The network; left as it was.
        x: Input of the map, ``(N, ...)``, used as given.
        statistics: Moments by BatchNorm call, or ``running`` for the stored ones.
        tensors: Given that stand in for parameters, by name.
        coefficients: As for `replay`.
        pools: What a max pool does with its window: ``sum``, or ``max`` of what arrives.
        per_sample: Coefficients that belong to a sample (LayerNorm, attention, gates): ``refuse``, or ``one``: they
            count 1, averaged over what a product of matrices contracts.
        output: Which of several outputs counts; None is the first tensor.

    Returns:
        Output of the linear map (linear up to ``pools="max"``).

    Raises:
        UnknownName: If ``statistics``, ``coefficients``, ``pools`` or ``per_sample`` is not known.
    """
    graph = lowered(trace(model, x, output=output))
    how: dict[str, Any] = {"pools": pools, "per_sample": per_sample}
    return _read(model, x, Linear(graph, _weights(model, tensors), None, statistics, coefficients, **how))


def _weights(model: nn.Module, tensors: Given) -> Weights:
    if isinstance(tensors, Weights):
        return tensors
    return Weights(model, compute_dtype(model, tensors), replaced=tensors)


def _read(model: nn.Module, x: Any, reading: Linear) -> Tensor:
    with untouched(model):
        return run_linear(reading, x)

"""BatchNorm: a coefficient per channel; mean and shift act on gates only."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from pathex.paths._moments import Moments
from pathex.paths._readings import RECORD, REPLAY, Record, Replay

__all__: list[str] = []


def _batch_norm(
    reading: Record,
    func: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    _refuse_dynamic(reading, weight, bias)
    stored = None if running_mean is None or running_var is None else Moments(running_mean, running_var)
    index = len(reading.moments)
    if reading.given == "running" and stored is not None:
        moments = stored
    elif reading.given is not None and reading.given != "running" and index < len(reading.given):
        moments = reading.given[index]
    else:
        moments = reading.measure(input, stored)
    reading.moments.append(moments)
    return F.batch_norm(input, moments.mean.to(input), moments.var.to(input), weight, bias, False, 0.0, eps)


def _batch_norm_linear(
    reading: Replay,
    func: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    _refuse_dynamic(reading, weight, bias)
    if reading.coefficients in ("ones", "connected"):
        return input * 1
    moments = reading.next_moments()
    var = running_var if moments is None else moments.var
    if var is None:
        raise reading.unsupported("batch_norm", "it keeps no statistics; use calibration='batch'")
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    return input * reading.coefficient(scale).to(input.dtype).view(-1, *[1] * (input.dim() - 2))


def _refuse_dynamic(reading: Record | Replay, *affine: Tensor | None) -> None:
    if any(reading.carries(tensor) for tensor in affine):
        raise reading.unsupported("batch_norm", "its weight or bias depends on the input")


RECORD[F.batch_norm] = _batch_norm
REPLAY[F.batch_norm] = _batch_norm_linear

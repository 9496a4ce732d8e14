"""Path eXclusion the plain way: what every ratio of ``benchmarks/rounds.py`` is measured against.

`plain_px` is the computation that the code released with the paper does (method card of ``px-cvpr24``), written from
its description for networks that call ``F.relu``: each round makes three deep copies of the masked network, runs two
passes without gradient and one with gradient over the whole batch in float32, and sorts for one global threshold.
`plainest_px` is the least that computes ``px`` itself: one network, one recorded pass, one squared pass with gradient.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput

__all__ = ["plain_px", "plain_scores", "plainest_px", "plainest_scores"]


def plain_px(
    model: nn.Module,
    images: Tensor,
    *,
    sparsity: float,
    rounds: int = 100,
    on_round: Callable[[int], object] | None = None,
) -> dict[str, Tensor]:
    """Prune a network by rounds of scoring and thresholding.

    Args:
        model: The network; it is not changed.
        images: The pruning set, one batch ``(N, C, H, W)``.
        sparsity: Fraction of the convolution and linear weights removed, in [0, 1).
        rounds: Score-and-threshold rounds, with a density of ``(1 - sparsity)^(t / rounds)`` after round t.
        on_round: Called with the number of the round after each.

    Returns:
        Name to a tensor of zeros and ones in the shape of the weight. A network without ReLU raises
        :class:`~pathex.errors.InvalidInput`.
    """
    return _rounds(model, lambda mask: plain_scores(model, images, mask), sparsity, rounds, on_round)


def plainest_px(
    model: nn.Module,
    images: Tensor,
    *,
    sparsity: float,
    rounds: int = 100,
    on_round: Callable[[int], object] | None = None,
) -> dict[str, Tensor]:
    """As `plain_px`, with the scores of ``px``."""
    network, images = copy.deepcopy(model), images.contiguous(memory_format=torch.channels_last)
    dense = {name: weight.detach().clone() for name, weight in _weights(network).items()}
    return _rounds(network, lambda mask: plainest_scores(network, dense, images, mask), sparsity, rounds, on_round)


def plainest_scores(
    network: nn.Module, dense: Mapping[str, Tensor], images: Tensor, mask: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Score every convolution and linear weight once.

    Args:
        network: A network of convolutions, BatchNorm, ``F.relu`` and one average of all pixels; its weights are lost.
        dense: Its weights.
        images: One batch ``(N, C, H, W)``, which BatchNorm is normalised by.
        mask: Name to zeros and ones.

    Returns:
        Name to ``theta^2 dR/d(theta^2)``, up to one factor for all.
    """
    weights, gates, scales = _weights(network), list[Tensor](), list[Tensor]()
    normalise = F.batch_norm

    def gate(x: Tensor, inplace: bool = False) -> Tensor:
        gates.append((x > 0).to(x.dtype))
        return x * gates[-1]

    def norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *how: float) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        scales.append((weight.square() / (var + how[-1])).view(-1, 1, 1))
        return normalise(x, mean, var, weight, bias, False, 0.0, how[-1])

    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(dense[name] * mask[name])
        with _relu_is(gate), mock.patch.object(F, "batch_norm", norm):
            network(images)
        for weight in weights.values():
            weight.square_()
    recorded, scaled = iter(gates), iter(scales)
    with (
        _relu_is(lambda x, inplace=False: x * next(recorded)),
        mock.patch.object(F, "batch_norm", lambda x, *_: x * next(scaled)),
    ):
        total = network(images.square()).sum()
    grads = torch.autograd.grad(total, list(weights.values()))
    return {name: grad * weights[name].detach() for name, grad in zip(weights, grads, strict=True)}


def _rounds(
    model: nn.Module,
    score: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    sparsity: float,
    rounds: int,
    on_round: Callable[[int], object] | None,
) -> dict[str, Tensor]:
    mask = {name: torch.ones_like(weight) for name, weight in _weights(model).items()}
    for number in range(1, rounds + 1):
        scores = score(mask)
        flat = torch.cat([score.flatten() for score in scores.values()]).sort().values
        removed = len(flat) - round((1 - sparsity) ** (number / rounds) * len(flat))
        threshold = flat[removed - 1] if removed else -torch.inf
        mask = {name: (score > threshold).float() for name, score in scores.items()}
        if on_round is not None:
            on_round(number)
    return mask


def plain_scores(model: nn.Module, images: Tensor, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score every convolution and linear weight once.

    Args:
        model: The network; it is not changed.
        images: One batch ``(N, C, H, W)``, which BatchNorm is normalised by in every copy.
        mask: Name to zeros and ones.

    Returns:
        Name to ``|g| |theta|^5``, g the derivative of ``sum z1 z2`` by theta^2.
    """
    gate_network, gated_network, squared_network = (_masked_copy(model, mask) for _ in range(3))
    with torch.no_grad():
        z1 = _gated_output(gate_network, gated_network, images)
        for name, parameter in squared_network.named_parameters():
            if "bn" not in name:
                parameter.square_()
    squares = _weights(squared_network)
    with _relu_is(lambda x, inplace=False: x):
        z2 = squared_network(images)
    grads = torch.autograd.grad((z1 * z2).sum(), list(squares.values()))
    thetas = _weights(gated_network)
    return {name: grad.abs() * thetas[name].detach().abs() ** 5 for name, grad in zip(squares, grads, strict=True)}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}.weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def _masked_copy(model: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    masked = copy.deepcopy(model).train()
    with torch.no_grad():
        for name, weight in _weights(masked).items():
            weight.mul_(mask[name])
    return masked


def _gated_output(gate_network: nn.Module, gated_network: nn.Module, images: Tensor) -> Tensor:
    """Output of the second network, whose activations are switched by what reached those of the first."""
    reached: list[Tensor] = []

    def recorded(x: Tensor, inplace: bool = False) -> Tensor:
        reached.append(x)
        return torch.relu(x)

    with _relu_is(recorded):
        gate_network(images)
    if not reached:
        raise InvalidInput("the plain implementation reads networks of nn.ReLU or F.relu; this one calls neither")
    gates = iter(reached)
    with _relu_is(lambda x, inplace=False: x * (next(gates) > 0)):
        return gated_network(images)


@contextmanager
def _relu_is(function: Callable[..., Tensor]) -> Iterator[None]:
    with mock.patch.object(F, "relu", function):
        yield

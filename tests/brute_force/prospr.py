"""ProsPr written out: training unrolled by hand, and the derivative of its last loss by steps in the mask."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

Values = NDArray[np.complex128]
Part = tuple[NDArray[np.float64], NDArray[np.int64]]


def _forward_backward(params: list[Values], part: Part) -> tuple[complex, list[Values]]:
    """Mean cross-entropy of a perceptron with ReLU and its gradient; parameters are W1, b1, W2, b2, ..."""
    images, labels = part
    inputs, gates, x = [], [], images.astype(complex)
    for i in range(0, len(params), 2):
        inputs.append(x)
        x = x @ params[i].T + params[i + 1]
        if i + 2 < len(params):
            gates.append(x.real > 0)
            x = x * gates[-1]
    shares = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(shares[rows, labels]).mean()
    back = shares.copy()
    back[rows, labels] -= 1
    back /= len(labels)
    gradient: list[Values] = [np.zeros(0)] * len(params)
    for i in reversed(range(0, len(params), 2)):
        gradient[i], gradient[i + 1] = back.T @ inputs[i // 2], back.sum(0)
        if i:
            back = (back @ params[i]) * gates[i // 2 - 1]
    return complex(loss), gradient


def perceptron(
    params: Sequence[NDArray[np.float64]],
    masks: Sequence[NDArray[np.float64]],
    parts: Sequence[Part],
    lr: float,
    momentum: float,
) -> list[NDArray[np.float64]]:
    """|d loss / d mask| for each entry of each weight matrix, by a complex step (exact up to rounding).

    Every part but the last is one step of gradient descent with momentum; the last one gives the loss.
    """

    def loss(layer: int, entry: int) -> complex:
        moved = [mask.astype(complex) for mask in masks]
        moved[layer].flat[entry] += 1e-30j
        state = [p.astype(complex) for p in params]
        for k, mask in enumerate(moved):
            state[2 * k] = state[2 * k] * mask
        velocity = [np.zeros_like(p) for p in state]
        for part in parts[:-1]:
            gradient = _forward_backward(state, part)[1]
            for k, mask in enumerate(masks):
                gradient[2 * k] = gradient[2 * k] * mask
            for i in range(len(state)):
                velocity[i] = momentum * velocity[i] + gradient[i]
                state[i] = state[i] - lr * velocity[i]
        return _forward_backward(state, parts[-1])[0]

    scores = [np.zeros(mask.shape) for mask in masks]
    for layer, score in enumerate(scores):
        for entry in range(score.size):
            score.flat[entry] = abs(loss(layer, entry).imag / 1e-30)
    return scores


def loss_after_training(
    model: nn.Module, masks: dict[str, Tensor], parts: Sequence[tuple[Tensor, Tensor]], lr: float
) -> float:
    """The loss on the last part after one step of gradient descent on each other part, from weights times masks.

    The model runs in the mode it is in; buffers are not kept.
    """
    state = {name: p.detach() * masks.get(name, torch.ones(())) for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    for x, y in parts[:-1]:
        leaves = {name: p.detach().requires_grad_() for name, p in state.items()}
        F.cross_entropy(functional_call(model, leaves | buffers, (x,)), y).backward()
        state = {name: p.detach() - lr * p.grad for name, p in leaves.items() if p.grad is not None}
    x, y = parts[-1]
    with torch.no_grad():
        return float(F.cross_entropy(functional_call(model, state | buffers, (x,)), y))


def slope_of_training(loss: Callable[[float], float], step: float = 1e-4) -> float:
    """The derivative at 1 by central differences, with one step of Richardson extrapolation."""
    coarse = (loss(1 + step) - loss(1 - step)) / (2 * step)
    fine = (loss(1 + step / 2) - loss(1 - step / 2)) / step
    return (4 * fine - coarse) / 3

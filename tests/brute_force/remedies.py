"""Remedies for sparse training on a network of two layers, one weight at a time, in float64 of Python.

The network is that of `brute_force.dynamic`: mean over images and outputs of (W1 tanh(W0 x) - y)^2.
"""

import math

import numpy as np

from brute_force.dynamic import gradients


class Scalar:
    """One number and its optimizer: SGD with momentum and L2 penalty, or AdamW with betas 0.9 and 0.999."""

    def __init__(self, value, kind, decay):
        self.value, self.kind, self.decay = value, kind, decay
        self.first, self.second, self.count = 0.0, 0.0, 0

    def step(self, gradient, lr):
        self.count += 1
        if self.kind == "sgd":
            self.first = 0.9 * self.first + gradient + self.decay * self.value
            self.value -= lr * self.first
            return
        self.value -= lr * self.decay * self.value
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean, square = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        self.value -= lr * mean / (math.sqrt(square) + 1e-8)


def factors(weight):
    """The m and w with m w = weight and m^2 - w^2 = 1, as cosh and sinh."""
    return math.cosh(math.asinh(2 * weight) / 2), math.sinh(math.asinh(2 * weight) / 2)


def unit_factor(mask, i):
    """SparseOpt's factor of unit i: by the sparsity of each row, counted."""
    removed = [sum(not kept for kept in row.flatten()) / row.size for row in mask]
    return math.sqrt(1 - removed[i]) / math.sqrt(1 - sum(removed) / len(removed))


def train(remedy, weights, masks, x, y, rates, *, kind="sgd", decay=0.0, alpha=200.0, beta=1e-3, every=1):
    """The weights after a step with each of the rates; Sign-In is balanced after every ``every`` of them."""
    kept = [(n, i) for n, mask in enumerate(masks) for i in np.ndindex(mask.shape) if mask[i]]
    values = [np.where(mask, weight, 0.0) for weight, mask in zip(weights, masks, strict=True)]
    parts = {at: [values[at[0]][at[1]]] for at in kept}
    if remedy == "sign-in":
        parts = {at: factors(*part) for at, part in parts.items()}
    parts = {at: [Scalar(float(one), kind, decay) for one in part] for at, part in parts.items()}
    for number, lr in enumerate(rates, 1):
        found = gradients(values, x, y)
        for (n, i), part in parts.items():
            gradient = float(found[n][i])
            if remedy == "sign-in":
                m, w = part[0].value, part[1].value
                part[0].step(gradient * w, lr)
                part[1].step(gradient * m, lr)
            else:
                part[0].step(gradient * (unit_factor(masks[n], i[0]) if remedy == "sparseopt" else 1), lr)
            if remedy == "ham":
                exponent = lr * (-alpha * math.copysign(1, part[0].value) * gradient - beta)
                part[0].value *= math.exp(min(5, max(-5, exponent)))
            values[n][i] = math.prod(one.value for one in part)
            if remedy == "sign-in" and number % every == 0:
                part[0].value, part[1].value = factors(values[n][i])
    return values

"""Biased random walks: one at a time through a perceptron, and exact probabilities of use by loops."""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def single_walks(weights: Sequence[Array], walks: int, seed: int, back: bool = False) -> list[Array]:
    """How often single walks use each entry of the matrices (out, in), starting at each input (output) in turn."""
    rng = random.Random(seed)
    uses = [np.zeros(weight.shape) for weight in weights]
    layers = range(len(weights) - 1, -1, -1) if back else range(len(weights))
    for walk in range(walks):
        unit = walk % (weights[-1].shape[0] if back else weights[0].shape[1])
        for layer in layers:
            away = np.abs(weights[layer][unit] if back else weights[layer][:, unit])
            after = rng.choices(range(len(away)), weights=away.tolist())[0]
            uses[layer][(unit, after) if back else (after, unit)] += 1
            unit = after
    return uses


def _edges(weight: Array, groups: int, transposed: bool) -> list[tuple[int, int, int, float]]:
    """(input unit, output unit, flat index, magnitude) of every weight of a layer."""
    edges = []
    for flat, (first, second, *_) in enumerate(np.ndindex(*weight.shape)):
        group = first // (weight.shape[0] // groups)
        other = group * weight.shape[1] + second
        source, target = (first, other) if transposed else (other, first)
        edges.append((source, target, flat, abs(float(weight.flat[flat]))))
    return edges


def _use(edges: list[tuple[int, int, int, float]], arriving: Array, side: int) -> dict[int, float]:
    away = [0.0] * len(arriving)
    for edge in edges:
        away[edge[side]] += edge[3]
    return {edge[2]: arriving[edge[side]] * edge[3] / away[edge[side]] for edge in edges}


def exact(weight: Array, arriving: Array, groups: int = 1, transposed: bool = False) -> Array:
    """The probability that a walk forward uses each weight, from the probability that it is at each input unit."""
    use = _use(_edges(weight, groups, transposed), arriving, 0)
    return np.array([use[i] for i in range(weight.size)]).reshape(weight.shape)


def exact_back(weight: Array, arriving: Array, groups: int = 1, transposed: bool = False) -> Array:
    """The same for a walk back, from the probability that it is at each output unit."""
    use = _use(_edges(weight, groups, transposed), arriving, 1)
    return np.array([use[i] for i in range(weight.size)]).reshape(weight.shape)


def passed(weight: Array, use: Array, groups: int = 1, transposed: bool = False) -> Array:
    """The probability that a walk forward is at each output unit, after it used a weight."""
    edges = _edges(weight, groups, transposed)
    units = np.zeros(1 + max(edge[1] for edge in edges))
    for edge in edges:
        units[edge[1]] += use.flat[edge[2]]
    return units


def passed_back(weight: Array, use: Array, groups: int = 1, transposed: bool = False) -> Array:
    """The same for a walk back, at each input unit."""
    edges = _edges(weight, groups, transposed)
    units = np.zeros(1 + max(edge[0] for edge in edges))
    for edge in edges:
        units[edge[0]] += use.flat[edge[2]]
    return units

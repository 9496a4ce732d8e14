"""Normalisations and standardised weights written out, and the scores of a small network with one of them, by loops."""

import numpy as np


def _over(x, group, eps, centred):
    """For each unit ``1 / sqrt(spread + eps)``, the spread taken over the units that ``group`` lists for it."""
    scale = np.empty(x.shape)
    for unit in np.ndindex(*x.shape):
        values = [float(x[other]) for other in group(unit)]
        mean = sum(values) / len(values) if centred else 0.0
        scale[unit] = 1 / np.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + eps)
    return scale


def layer_scale(x, dims, eps, centred=True):
    """LayerNorm over the last ``dims`` dimensions; RMSNorm if it is not centred."""
    kept = x.ndim - dims
    return _over(x, lambda unit: [(*unit[:kept], *rest) for rest in np.ndindex(*x.shape[kept:])], eps, centred)


def group_scale(x, groups, eps):
    """GroupNorm of ``(N, C, ...)``."""
    size = x.shape[1] // groups

    def group(unit):
        first = unit[1] // size * size
        return [(unit[0], c, *rest) for c in range(first, first + size) for rest in np.ndindex(*x.shape[2:])]

    return _over(x, group, eps, True)


def instance_scale(x, eps):
    """InstanceNorm of ``(N, C, ...)`` by its own statistics."""
    return layer_scale(x, x.ndim - 2, eps)


def response_scale(x, size, alpha, beta, k):
    """Local response normalisation of ``(N, C, ...)`` over ``size`` neighbouring channels."""
    scale = np.empty(x.shape)
    for unit in np.ndindex(*x.shape):
        total = 0.0
        for channel in range(unit[1] - size // 2, unit[1] - size // 2 + size):
            if 0 <= channel < x.shape[1]:
                total += float(x[(unit[0], channel, *unit[2:])]) ** 2
        scale[unit] = (k + alpha * total / size) ** -beta
    return scale


def standardised(weight, gain, eps):
    """Each output channel with mean zero and the gain as standard deviation."""
    result = np.empty(weight.shape)
    for channel, row in enumerate(weight):
        mean = sum(row.ravel()) / row.size
        spread = sum((value - mean) ** 2 for value in row.ravel()) / row.size
        result[channel] = gain[channel] * (row - mean) / np.sqrt(spread + eps)
    return result


def scores_of_two_layers(x, first, second, coefficient, act, weighed=None):
    """The sum over paths of a pointwise network ``second relu(norm(first x))``, weight by weight.

    ``x`` is (N, C, L), ``first`` (H, C), ``second`` (K, H). ``coefficient`` gives what a path is multiplied with at a
    hidden unit (N, H, L), ``act`` the hidden values that decide whether the gate is open, from hidden values.
    ``weighed`` are the weights of the paths where they are not those of the forward pass.
    """
    samples, channels, length = x.shape
    hidden = np.zeros((samples, len(first), length))
    for n, h, position, c in np.ndindex(*hidden.shape, channels):
        hidden[n, h, position] += first[h, c] * x[n, c, position]
    scale = coefficient(hidden)
    gate = act(hidden) > 0
    lower, upper = (first, second) if weighed is None else weighed
    scores = np.zeros(first.shape), np.zeros(second.shape)
    for n, k, h, c, position in np.ndindex(samples, len(second), len(first), channels, length):
        if gate[n, h, position]:
            path = upper[k, h] * scale[n, h, position] * lower[h, c] * x[n, c, position]
            scores[0][h, c] += path**2
            scores[1][k, h] += path**2
    return scores

"""Dynamic sparse training of a network of two layers, written out: gradients by hand, lists sorted, one weight a time.

Arrays are numpy float64. Nothing is hooked: masks multiply weights wherever they are read.
"""

import math

import numpy as np


def gradients(weights, x, y):
    """Of the mean over images and outputs of ``(W1 tanh(W0 x) - y)^2``, for all weights, masked or not."""
    hidden = np.tanh(x @ weights[0].T)
    error = 2 * (hidden @ weights[1].T - y) / y.size
    return [((error @ weights[1]) * (1 - hidden**2)).T @ x, error.T @ hidden]


def moved(mask, weight, gain, count):
    """The mask after the weakest ``count`` kept weights went and the ``count`` others of most gain came."""
    kept = [i for i in np.ndindex(mask.shape) if mask[i]]
    stay = sorted(kept, key=lambda i: abs(weight[i]), reverse=True)[: len(kept) - count]
    others = [i for i in np.ndindex(mask.shape) if i not in stay]
    grow = sorted(others, key=lambda i: abs(gain[i]), reverse=True)[:count]
    new = np.zeros_like(mask)
    for i in (*stay, *grow):
        new[i] = True
    return new


def train(weights, masks, batches, *, every, fraction, until, lr, momentum, decay, random=None):
    """SGD with momentum (a batch a step), and every so many steps, until a share of them, an update of the masks.

    ``fraction`` is what is dropped at first; ``random`` gives the gains from the numbers of the update and the layer
    (SET), None is RigL. The result is the weights at the end, and the masks after each step.
    """
    weights, masks = [w * m for w, m in zip(weights, masks, strict=True)], list(masks)
    memory = [np.zeros_like(w) for w in weights]
    seen, end, updates = [], until * len(batches), 0
    for step, (x, y) in enumerate(batches, 1):
        dense = gradients(weights, x, y)
        due = step % every == 0 and step < end
        if not due or random is not None:
            for layer, grad in enumerate(dense):
                memory[layer] = momentum * memory[layer] + grad * masks[layer] + decay * weights[layer]
                weights[layer] = (weights[layer] - lr * memory[layer]) * masks[layer]
        if due:
            updates += 1
            share = fraction / 2 * (1 + math.cos(math.pi * step / end))
            for layer, mask in enumerate(masks):
                gain = dense[layer] if random is None else random(updates, layer)
                new = moved(mask, weights[layer], gain, int(share * mask.sum()))
                weights[layer] = weights[layer] * (new & mask)
                memory[layer] = np.where(new & ~mask, 0.0, memory[layer])
                masks[layer] = new
        seen.append(list(masks))
    return weights, seen

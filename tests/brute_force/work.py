"""Multiply-adds of one image, counted one product at a time."""

from itertools import product

import torch
from torch import nn


def multiply_adds(layers, x, masks):
    """Walk through the layers and count every product of a kept weight with an entry of the (padded) image."""
    products = 0
    for number, layer in enumerate(layers):
        places = ()
        if isinstance(layer, nn.ConvTranspose2d):  # every pixel that arrives is sent through every weight
            places = product(range(x.shape[1]), range(x.shape[2]))
        elif isinstance(layer, nn.Conv2d):
            places = product(starts(layer, 0, x.shape[1]), starts(layer, 1, x.shape[2]))
        elif isinstance(layer, nn.Linear):
            places = product(*map(range, x.shape[:-1]))
        for _ in places:
            products += len(masks[f"{number}.weight"].nonzero().tolist())
        with torch.no_grad():
            x = layer.eval()(x[None])[0]
    return products


def starts(layer, axis, size):
    """Where a window may begin so that its last pixel is still on the padded image."""
    padding, kernel = layer.padding[axis], layer.kernel_size[axis]
    assert isinstance(padding, int)
    last = layer.dilation[axis] * (kernel - 1)
    return [
        begin
        for begin in range(-padding, size + padding)
        if begin + last < size + padding and (begin + padding) % layer.stride[axis] == 0
    ]

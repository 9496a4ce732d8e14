"""Multiply-adds of one image, counted one product at a time."""

from itertools import product

import torch
from torch import nn

from brute_force.planes import extents


def multiply_adds(layers, x, masks):
    """Walk through the layers and count every product of a kept weight with an entry of the (padded) image."""
    products = 0
    for number, layer in enumerate(layers):
        places = ()
        if isinstance(layer, nn.ConvTranspose2d):  # every pixel that arrives is sent through every weight
            places = product(range(x.shape[1]), range(x.shape[2]))
        elif isinstance(layer, nn.Conv2d):
            places = product(*map(range, extents(x.shape[1:], layer)))
        elif isinstance(layer, nn.Linear):
            places = product(*map(range, x.shape[:-1]))
        for _ in places:
            products += len(masks[f"{number}.weight"].nonzero().tolist())
        with torch.no_grad():
            x = layer.eval()(x[None])[0]
    return products

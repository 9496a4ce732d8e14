"""Networks with another activation, for ``model: benchmarks.networks:resnet20`` and for other benchmarks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pathex import models

__all__ = ["resnet20"]


def resnet20(num_classes: int, in_channels: int, activation: str = "gelu", **options: Any) -> nn.Module:
    """ResNet-20 with another activation in place of every ReLU.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        activation: A function of ``torch.nn.functional``.
        **options: Options of the model ``resnet20``.

    Returns:
        The network, with a traced forward pass.
    """
    model = models.create("resnet20", num_classes, in_channels, **options)
    graph = fx.Tracer().trace(model)
    for node in graph.nodes:
        if node.target in {F.relu, torch.relu}:
            node.target, node.kwargs = getattr(F, activation), {}
    return fx.GraphModule(model, graph)

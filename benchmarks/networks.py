"""Networks with another activation, for ``model: benchmarks.networks:resnet20`` and for other benchmarks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pathex import models

__all__ = ["resnet20"]


def resnet20(num_classes: int, in_channels: int, activation: str = "gelu", **options: Any) -> nn.Module:
    """ResNet-20, traced, with a function of ``torch.nn.functional`` in place of every ReLU."""
    model = models.create("resnet20", num_classes, in_channels, **options)
    graph = fx.Tracer().trace(model)
    for node in graph.nodes:
        if node.target in {F.relu, torch.relu}:
            node.target, node.kwargs = getattr(F, activation), {}
    return fx.GraphModule(model, graph)

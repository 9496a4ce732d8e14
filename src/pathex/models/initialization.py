"""How the project's own networks begin."""

from torch import nn


def kaiming_normal(model: nn.Module) -> None:
    """Draw weights of convolutions and linear layers by Kaiming's normal rule (fan in, ReLU gain)."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)

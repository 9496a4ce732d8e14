"""How the project's own networks begin."""

from torch import nn

__all__ = ["kaiming_normal"]


def kaiming_normal(model: nn.Module) -> None:
    """Draw convolution and linear weights by Kaiming's normal rule (fan in, ReLU gain); BatchNorm starts at 1 and 0.

    Biases of linear layers keep PyTorch's own uniform start. Draws come from the global generator of PyTorch.

    Args:
        model: The network, changed in place.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

"""Networks of `tickets.py`: any name of pathex, with ReLU replaced by another activation on request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

import pathex
from pathex.errors import InvalidInput, UnknownName

__all__ = ["ACTIVATIONS", "Network", "swap_relu"]

ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "softplus", "tanh")
_MODULES = (nn.ReLU, nn.ReLU6)
_FUNCTIONS = (F.relu, F.relu6, F.relu_, torch.relu, torch.relu_)
_METHODS = ("relu", "relu_")


class Activation(nn.Module):
    """An activation function as a module.

    Args:
        name: One of `ACTIVATIONS`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it.

        Args:
            x: Any tensor.

        Returns:
            A tensor of the same shape.
        """
        result: torch.Tensor = _function(self.name)(x)
        return result

    def extra_repr(self) -> str:
        """What the printed network shows."""
        return self.name


def _function(name: str) -> Any:
    return torch.tanh if name == "tanh" else getattr(F, name)


def swap_relu(model: nn.Module, activation: str) -> nn.Module:
    """Put another activation wherever the network applies ReLU or ReLU6, be it a module, a function or a method.

    Args:
        model: The network; its modules are changed in place.
        activation: One of `ACTIVATIONS`; ``relu`` changes nothing.

    Returns:
        The network itself, or where functions had to be replaced the same modules with a traced forward pass.

    Raises:
        InvalidInput: If the activation is unknown, the network has no ReLU, or its forward pass cannot be traced, so
            that uses of ``F.relu`` might stay.
    """
    if activation not in ACTIVATIONS:
        raise UnknownName("activation", activation, list(ACTIVATIONS))
    if activation == "relu":
        return model
    replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _MODULES):
                setattr(module, name, Activation(activation))
                replaced += 1
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # tracing runs the network's own code
        reason = " ".join(str(error).split())[:200]
        raise InvalidInput(f"{type(model).__name__} cannot be traced to replace its ReLU: {reason}") from error
    uses = [node for node in graph.nodes if _applies_relu(node)]
    if not uses and not replaced:
        raise InvalidInput(f"{type(model).__name__} applies no ReLU that could be replaced")
    for node in uses:
        node.op, node.target = "call_function", _function(activation)
        node.args, node.kwargs = (node.args[0] if node.args else node.kwargs["input"],), {}
    return fx.GraphModule(model, graph, type(model).__name__) if uses else model


def _applies_relu(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in _FUNCTIONS) or (
        node.op == "call_method" and node.target in _METHODS
    )


@dataclass(frozen=True)
class Network:
    """How every ticket's network is made.

    Attributes:
        name: A name of ``pathex.models.create``.
        num_classes: Outputs.
        in_channels: Channels of the images.
        activation: What takes the place of ReLU.
        options: Options of the network.
    """

    name: str
    num_classes: int = 10
    in_channels: int = 3
    activation: str = "relu"
    options: Mapping[str, Any] = field(default_factory=dict)

    def create(self, seed: int) -> nn.Module:
        """Make it, on the CPU.

        Args:
            seed: Seed of the initial weights, which follow from it alone.

        Returns:
            The network.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = pathex.models.create(self.name, self.num_classes, self.in_channels, **self.options)
        return swap_relu(model, self.activation)

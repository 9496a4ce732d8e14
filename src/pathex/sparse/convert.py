"""A network that trains by its kept weights alone, and the way back."""

import copy
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput, MaskMismatch, UnsupportedOperation, check_integer
from pathex.graph import Graph, Node, trace
from pathex.masks import Mask, own_module

if TYPE_CHECKING:
    from pathex.sparse.team import Team
    from pathex.sparse.unit import Unit


class Kept(nn.Module):
    """A layer whose weight has an entry for each kept weight, in the order of the dense one.

    State dicts have the dense weight.
    """

    kept: Tensor  # bool, in the dense shape
    weight: nn.Parameter
    unit: "Unit | None" = None
    team: "Team"
    waits: tuple[str, bool] | None = None

    @classmethod
    def of(cls, layer: nn.Module, kept: Tensor, team: "Team") -> None:
        """Make a layer such a one, in place."""
        layer.__class__ = _CLASSES[type(layer)]
        dense = layer.weight
        layer.kept, layer.team = kept, team
        layer.weight = nn.Parameter(dense.detach()[kept], requires_grad=dense.requires_grad)

    def dense_weight(self) -> Tensor:
        """The weight with zeros where nothing is kept."""
        dense = self.weight.new_zeros(self.kept.shape)
        return dense.masked_scatter(self.kept, self.weight)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        dense = self.dense_weight()
        destination[f"{prefix}weight"] = dense if keep_vars else dense.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        name = f"{prefix}weight"
        dense = state_dict.get(name)
        if dense is not None and dense.shape == self.kept.shape:
            if bool(dense[~self.kept].count_nonzero()):
                others[3].append(f"{name} is not zero where its mask removes")
            state_dict[name] = dense[self.kept]
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """The dense layer's, and how many weights are kept."""
        way = "dense" if self.unit is None else "sparse"
        return f"{super().extra_repr()}, kept={self.weight.numel()} of {self.kept.numel()}, {way}"


class KeptConv2d(Kept, nn.Conv2d):
    """A convolution that computes kept weights."""

    def forward(self, x: Any) -> Any:
        """As `torch.nn.Conv2d`."""
        if self.unit is None:
            return self._conv_forward(x, self.dense_weight(), self.bias)
        from pathex.sparse.training import Pending, convolve

        moments = self.waits is not None and self.training
        y, *found = convolve(x, (self.unit, self.team), moments, self.weight, self.bias)
        return Pending(self.team, y, found if moments else None, *self.waits) if self.waits else y


class KeptLinear(Kept, nn.Linear):
    """A linear layer that computes kept weights."""

    def forward(self, x: Any) -> Any:
        """As `torch.nn.Linear`."""
        if self.unit is None:
            return nn.functional.linear(x, self.dense_weight(), self.bias)
        from pathex.sparse.training import convolve

        rows = x.reshape(-1, x.shape[-1], 1, 1)
        y, _, _ = convolve(rows, (self.unit, self.team), False, self.weight, self.bias)
        return y.reshape(*x.shape[:-1], y.shape[1])


_CLASSES: Mapping[type, type] = {nn.Conv2d: KeptConv2d, nn.Linear: KeptLinear}


def convert(
    model: nn.Module, mask: Mask, example_input: Tensor, threads: int | None = None
) -> nn.Module:
    """A copy of a network that trains by its kept weights alone, on a CPU.

    Masked convolutions in two dimensions and linear layers have a weight with an entry for each kept weight, so that
    optimizers hold state for these only; state dicts have the names and shapes of the dense network. The convolutions
    compute nothing else, forward and backward, with batch normalisation, sums and ReLU that follow them in the same
    kernels. Activations lie in memory image beside image; the values are those of the dense network.

    Args:
        model: The network.
        mask: What is kept.
        example_input: Images ``(N, C, H, W)`` as in training.
        threads: Threads of the kernels; None: as many as torch has.

    Returns:
        The copy; `restore` gives a dense network back.

    Raises:
        MaskMismatch: If the mask does not fit the model.
        InvalidInput: If numba is not installed (the extra ``sparse``), or the model is not on a CPU.
        UnsupportedOperation: If the mask has weights of other layers, or the network cannot be traced.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> mask = Mask({"0.weight": torch.rand(4, 3, 3, 3) < 0.2})
        >>> net = convert(model, mask, torch.randn(2, 3, 4, 4))
        >>> net[0].weight.numel() == mask.kept
        True
    """
    if importlib.util.find_spec("numba") is None:
        raise InvalidInput("pathex.sparse.convert needs numba: pip install 'pathex[sparse]'")
    from pathex.sparse.team import Team
    from pathex.sparse.unit import Unit

    own = own_module(model)
    mask.check(own)
    if any(parameter.device.type != "cpu" for parameter in own.parameters()):
        raise InvalidInput("pathex.sparse.convert is for networks on the CPU")
    net = copy.deepcopy(own)
    graph = trace(net, example_input)
    team = Team(check_integer("threads", torch.get_num_threads() if threads is None else threads))
    for path, layer in _layers(net, mask).items():
        kept = mask[f"{path}.weight"]
        padding = getattr(layer, "padding_mode", "zeros")
        Kept.of(layer, kept, team)
        if isinstance(layer, KeptConv2d) and padding == "zeros":
            layer.unit = Unit(kept, _window(layer), layer.groups)
            layer.waits = _waits(graph, path)
    return net


def restore(net: nn.Module) -> nn.Module:
    """The dense network of one that `convert` made: a copy with the weights that it has now."""
    model = copy.deepcopy(net)
    for layer in model.modules():
        if isinstance(layer, Kept):
            dense = nn.Parameter(layer.dense_weight().detach(), requires_grad=layer.weight.requires_grad)
            layer.__class__ = next(plain for plain, kept in _CLASSES.items() if isinstance(layer, kept))
            layer.weight = dense
            for name in ("kept", "unit", "team", "waits"):
                layer.__dict__.pop(name, None)
    return model


def _layers(net: nn.Module, mask: Mask) -> dict[str, nn.Module]:
    """The layers of masked weights, by path."""
    found = {}
    for name in mask:
        path, _, leaf = name.rpartition(".")
        layer = net.get_submodule(path)
        if leaf != "weight" or type(layer) not in _CLASSES or "weight" not in layer._parameters:
            raise UnsupportedOperation(
                f"{name!r} is no weight of a plain Conv2d or Linear layer: train the network as it is, with"
                " pathex.attach, or leave the layer out of the mask with ignore="
            )
        found[path] = layer
    return found


def _window(layer: nn.Conv2d) -> Any:
    from pathex.sparse.plan import Window

    if isinstance(layer.padding, str):
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        pads = (top, left, bottom, right)
    else:
        pads = (*layer.padding, *layer.padding)
    return Window(layer.kernel_size, layer.stride, layer.dilation, pads)


def _waits(graph: Graph, path: str) -> tuple[str, bool] | None:
    """What the result of a layer waits for at the most, and whether the next layer then reads it alone."""
    nodes = [node for node in graph.path if node.module[0] == path and node.op == "conv2d"]
    found = {_behind(graph, node) for node in nodes}
    return found.pop() if len(found) == 1 else None


def _behind(graph: Graph, node: Node) -> tuple[str, bool] | None:
    passed = []
    for step in ("batch_norm", "add", "relu"):
        users = graph.users[node]
        if len(users) == 1 and users[0].op == step:
            node = users[0]
            passed.append(step)
    if passed[:1] != ["batch_norm"]:
        return None
    readers = [user.op for user in graph.users[node]]
    return passed[-1], readers == ["conv2d"] and "add" not in passed

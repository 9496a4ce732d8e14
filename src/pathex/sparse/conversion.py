"""A network that trains by its kept weights alone, and the way back."""

import importlib.util
import logging
import os
import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput, UnsupportedOperation, check_integer
from pathex.graph import Graph, Node, breaks_in_channels_last, copied, trace
from pathex.masks import Mask, own_module
from pathex.sparse.compiler import check_example, check_ways

if TYPE_CHECKING:
    from pathex.sparse.team import Team
    from pathex.sparse.unit import Unit


_PIXELS, _LANES, _LONG = 16, 16, 0.5
_CLEAR = 1.2  # how much faster a layer has to be dense: what is between layers is faster sparse
_SURE = 0.2  # density of a convolution up to which it is faster sparse on every processor tried


class Kept(nn.Module):
    """A layer whose weight has an entry for each kept weight, in the order of the dense one.

    State dicts have the dense weight.
    """

    kept: Tensor  # bool, in the dense shape
    weight: Any
    unit: Any = None
    team: "Team"
    waits: tuple[str, int] | None = None
    asked = False  # whether the gradient of the dense weight is
    whole: Tensor | None = None  # that weight

    @classmethod
    def of(cls, layer: Any, kept: Tensor, team: "Team") -> None:
        """Make a layer such a one, in place."""
        layer.__class__ = _CLASSES[type(layer)]
        dense = layer.weight
        layer.kept, layer.team = kept, team
        layer.weight = nn.Parameter(dense.detach()[kept], requires_grad=dense.requires_grad)

    def dense_weight(self) -> Tensor:
        """The weight with zeros where nothing is kept."""
        return _spread(self.weight, self.kept)

    def used_weight(self) -> Tensor:
        """What a dense computation reads."""
        if not self.asked:
            return self.dense_weight()
        if self.whole is None:
            self.whole = self.dense_weight().detach().requires_grad_()
        return self.whole

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
        if self.unit is None or self.asked:
            breaks = breaks_in_channels_last(self.kept.shape, self.stride, self.groups)
            layout = {"memory_format": torch.contiguous_format if breaks else torch.channels_last}
            return self._conv_forward(x.contiguous(**layout), self.used_weight().contiguous(**layout), self.bias)
        from pathex.sparse.pending import Pending, convolve

        moments = self.waits is not None and self.training
        y, *found = convolve(x, (self.unit, self.team), moments, self.weight, self.bias)
        made = Pending(self.team, x.shape[0], y, found if moments else None, *self.waits or ("", 0))
        return made if self.waits else made.tensor


class KeptLinear(Kept, nn.Linear):
    """A linear layer that computes kept weights."""

    def forward(self, x: Any) -> Any:
        """As `torch.nn.Linear`."""
        if self.unit is None or self.asked:
            return F.linear(x, self.used_weight(), self.bias)
        from pathex.sparse.pending import as_images, convolve

        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        # A convolution of images of some pixels in a row: a tile of them for each kept weight.
        pixels = max(1, min(_PIXELS, count // (_LANES * self.team.threads)))
        images = -(-count // pixels)
        rows = F.pad(rows, (0, 0, 0, images * pixels - count)).view(pixels, images, 1, -1).permute(1, 3, 2, 0)
        y, _, _ = convolve(rows, (self.unit, self.team), False, self.weight, self.bias)
        y = as_images(y, images)
        return y.permute(3, 0, 2, 1).reshape(pixels * images, -1)[:count].view(*x.shape[:-1], -1)


_CLASSES: Mapping[type, type] = {nn.Conv2d: KeptConv2d, nn.Linear: KeptLinear}


def convert(
    model: nn.Module,
    mask: Mask,
    example_input: Tensor,
    threads: int | None = None,
    choice: Mapping[str, str] | str | None = None,
) -> nn.Module:
    """A copy of a network that trains by its kept weights alone, on a CPU.

    Masked convolutions in two dimensions and linear layers have a weight with an entry for each kept weight, so that
    optimizers hold state for these only; state dicts have the names and shapes of the dense network. The convolutions
    compute nothing else, forward and backward, with batch normalisation, sums and ReLU that follow them in the same
    kernels, unless they are faster dense. Between them activations lie in blocks of images; the values are those of
    the dense network.

    Args:
        model: The network.
        mask: What is kept.
        example_input: Images ``(N, C, H, W)`` as in training.
        threads: Threads of the kernels; None: as many as torch has.
        choice: In place of measuring the `plan` of another one; or ``sparse`` or ``dense`` for all layers.

    Returns:
        The copy; `restore` gives a dense network back.

    Raises:
        MaskMismatch: If the mask does not fit the model.
        InvalidInput: If numba is not installed (the extra ``sparse``), the model is not on a CPU, or an argument cannot
            be used.
        UnsupportedOperation: If the mask has weights of other layers or of two at once, or no graph can be traced.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> mask = Mask({"0.weight": torch.rand(4, 3, 3, 3) < 0.2})
        >>> net = convert(model, mask, torch.randn(2, 3, 4, 4))
        >>> net[0].weight.numel() == mask.kept
        True
    """
    if importlib.util.find_spec("numba") is None:
        raise InvalidInput("pathex.sparse.convert needs numba: pip install 'pathex[sparse]'")
    from pathex.sparse.team import Team

    images, own = check_example(example_input), own_module(model)
    mask.check(own)
    if any(parameter.device.type != "cpu" for parameter in own.parameters()):
        raise InvalidInput("pathex.sparse.convert is for networks on the CPU")
    net = copied(own)
    graph = trace(net, images[:1].to(next(net.parameters()).dtype))
    team = Team(check_integer("threads", torch.get_num_threads() if threads is None else threads))
    if team.threads > 1:
        _advise()
    layers = _layers(net, mask)
    for path, layer in layers.items():
        Kept.of(layer, mask[_weight(path)], team)
    choice = _fastest(layers, graph, len(images)) if choice is None else choice
    ways = dict.fromkeys(layers, choice) if isinstance(choice, str) else choice
    check_ways(ways, layers, ("sparse", "dense"))
    for path, layer in layers.items():
        if ways[path] == "sparse":
            layer.unit, layer.waits = _unit(path, layer), _waits(graph, path)
    return net


@cache
def _advise() -> None:
    if os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        logging.getLogger(__name__).warning(
            "set OMP_WAIT_POLICY=passive in the environment: otherwise threads of PyTorch that wait keep others from"
            " computing"
        )


def plan(net: nn.Module) -> dict[str, str]:
    """How the masked layers of a network that `convert` made are computed: ``sparse`` or ``dense``, by path."""
    kept = {path: layer for path, layer in net.named_modules() if isinstance(layer, Kept)}
    return {path: "dense" if layer.unit is None else "sparse" for path, layer in kept.items()}


def restore(net: nn.Module) -> nn.Module:
    """The dense network of one that `convert` made: a copy with the weights that it has now."""
    model = copied(net)
    for layer in model.modules():
        if isinstance(layer, Kept):
            dense = nn.Parameter(layer.dense_weight().detach(), requires_grad=layer.weight.requires_grad)
            layer.__class__ = next(plain for plain, kept in _CLASSES.items() if isinstance(layer, kept))
            layer.weight = dense
            for name in ("kept", "unit", "team", "waits", "asked", "whole"):
                layer.__dict__.pop(name, None)
    return model


def _spread(values: Tensor, kept: Tensor) -> Tensor:
    """Values of kept weights in the dense shape, with zeros for the others."""
    return values.new_zeros(kept.shape).masked_scatter(kept, values)


def kept_layers(net: nn.Module) -> dict[str, Kept]:
    """The masked layers of a network that `convert` made, by the name of their weight."""
    return {_weight(path): layer for path, layer in net.named_modules() if isinstance(layer, Kept)}


@torch.no_grad()
def move(layers: Mapping[str, Kept], mask: Mask, optimizer: torch.optim.Optimizer) -> None:
    """Give layers of `kept_layers` another mask: new weights, and what an optimizer knows of them, are zero."""
    for name, layer in layers.items():
        new, weight = mask[name], layer.weight
        if torch.equal(new, layer.kept):
            continue
        state = optimizer.state.get(weight, {})
        for place, value in {**state, "": weight.detach()}.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                moved = _spread(value, layer.kept)[new]
                if place:
                    state[place] = moved
                else:
                    weight.data, weight.grad = moved, None
        layer.kept = new
        if layer.unit is not None:
            layer.unit = _unit(name, layer)


def _weight(path: str) -> str:
    """The name of a layer's weight; the network itself may be the layer."""
    return f"{path}.weight" if path else "weight"


def _layers(net: nn.Module, mask: Mask) -> dict[str, Any]:
    """The layers of masked weights, by path."""
    found = {}
    holders: dict[Tensor | None, list[str]] = {}
    for path, module in net.named_modules():
        for leaf, parameter in module._parameters.items():
            holders.setdefault(parameter, []).append(f"{path}.{leaf}")
    for name in mask:
        path, _, leaf = name.rpartition(".")
        layer = net.get_submodule(path)
        if leaf != "weight" or type(layer) not in _CLASSES or "weight" not in layer._parameters:
            raise UnsupportedOperation(
                f"{name!r} is no weight of a plain Conv2d or Linear layer: train the network as it is, with"
                " pathex.attach, or leave the layer out of the mask with ignore="
            )
        if len(tied := holders[layer._parameters[leaf]]) > 1:
            raise UnsupportedOperation(
                f"{' and '.join(tied)} are one weight: train the network as it is, with pathex.attach, or leave it out"
                " of the mask with ignore="
            )
        found[path] = layer
    return found


def _unit(path: str, layer: Any) -> "Unit":
    from pathex.sparse.planes import Window
    from pathex.sparse.unit import Unit

    kept = layer.kept
    if isinstance(layer, nn.Linear):
        return Unit(kept[:, :, None, None], Window((1, 1)))
    if layer.padding_mode != "zeros":
        raise UnsupportedOperation(
            f"{path!r} pads by {layer.padding_mode!r}: choose 'dense' for it, 'sparse' pads zeros"
        )
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    window = Window(layer.kernel_size, layer.stride, layer.dilation, (top, left, bottom, right))
    return Unit(kept, window, layer.groups)


def _fastest(layers: Mapping[str, Any], graph: Graph, images: int) -> dict[str, str]:
    """For each layer what is faster, forward and backward, for so many images."""
    found = {}
    for path, layer in layers.items():
        sources = [n.args[0] for n in graph.path if n.module[0] == path and n.op in ("conv2d", "linear")]
        few, is_linear = layer.weight.numel() <= _SURE * layer.kept.numel(), isinstance(layer, nn.Linear)
        known = bool(sources) and (few or not is_linear)
        possible = known and all(_reads(path, layer, source.shape or ()) for source in sources)
        found[path] = "sparse" if possible else "dense"
        if possible and few == is_linear:
            x = torch.ones((max(2, images), *sources[0].shape[1:]), dtype=layer.weight.dtype)
            inside = sources[0] not in graph.inputs
            layer.unit, layer.waits = _unit(path, layer), ("relu", 1)
            sparse = _seconds(layer, x, inside)
            layer.unit = layer.waits = None
            found[path] = "sparse" if sparse <= _CLEAR * _seconds(layer, x, inside) else "dense"
    return found


def _reads(path: str, layer: Any, shape: tuple[int, ...]) -> bool:
    """Whether the kernels can read what has a shape as a layer does."""
    size = (1, _PIXELS) if isinstance(layer, nn.Linear) else shape[2:]
    try:
        return len(size) == 2 and bool(_unit(path, layer).shape(*size))
    except UnsupportedOperation:
        return False


def _seconds(layer: Any, x: Tensor, inside: bool) -> float:
    """Of a forward and a backward pass, with what may wait for a convolution, between others that are sparse."""
    from pathex.sparse.pending import Pending, in_blocks

    if inside:
        x = (in_blocks(x) if x.dim() == 4 else x).requires_grad_()
    trained = [each for each in (layer.weight, x) if each.requires_grad]

    def step() -> float:
        began = time.perf_counter()
        if isinstance(layer, nn.Linear):
            y = layer(x)
        else:
            given = Pending(layer.team, images, x, None, "", 1) if inside else x
            y = F.batch_norm(layer(given), None, None, training=True).relu()
            y = y.blocks if isinstance(y, Pending) else in_blocks(y)
        if trained:
            torch.autograd.grad(y, trained, torch.ones_like(y))
        return time.perf_counter() - began

    images = len(x) if not inside or isinstance(layer, nn.Linear) else x.shape[0] * x.shape[4]
    first = step()
    return min(step() for _ in range(3 if first < _LONG else 1))


def _waits(graph: Graph, path: str) -> tuple[str, int] | None:
    """What the result of a layer waits for at the most, and how many layers and sums, if nothing else, read it then."""
    nodes = [node for node in graph.path if node.module[0] == path and node.op == "conv2d"]
    found = {_behind(graph, node) for node in nodes}
    return found.pop() if len(found) == 1 else None


def _behind(graph: Graph, node: Node) -> tuple[str, int] | None:
    passed = []
    for step in ("batch_norm", "add", "relu", "max_pool2d"):
        users = graph.users[node]
        if len(users) == 1 and users[0].op == step:
            node = users[0]
            passed.append(step)
    if passed[:1] != ["batch_norm"]:
        return None
    readers = [user.op for user in graph.users[node]]
    return passed[-1], len(readers) if {"conv2d"} <= {*readers} <= {"conv2d", "add"} else 0


def dense_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer in the shapes of the dense network: zeros where nothing is kept."""

    def dense(value: Any, kept: Tensor) -> Any:
        fits = isinstance(value, Tensor) and value.dim() == 1
        return _spread(value, kept) if fits else value

    return _changed(net, optimizer, optimizer.state_dict(), dense)


def kept_state(net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer of the dense network for that of one that `convert` made."""

    def gathered(value: Any, kept: Tensor) -> Any:
        return value[kept] if isinstance(value, Tensor) and value.shape == kept.shape else value

    return _changed(net, optimizer, state, gathered)


def _changed(net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], how: Any) -> dict[str, Any]:
    kept = {layer.weight: layer.kept for layer in net.modules() if isinstance(layer, Kept)}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = {
        number: {name: how(value, kept[trained[number]]) for name, value in entry.items()}
        if trained[number] in kept
        else entry
        for number, entry in state["state"].items()
    }
    return {**state, "state": found}

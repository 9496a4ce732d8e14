"""A network made smaller: what its mask leaves without use is taken out of its own modules."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pathex.compaction.channels import Channels
from pathex.compaction.decision import Decision, decide
from pathex.compaction.surgery import Recipe, carve, cut
from pathex.compaction.trial import Inputs, expected_of, fault_of, inputs_of, keep_for_training, pin
from pathex.errors import UnsupportedOperation
from pathex.graph import Tensors, copied, trace, untouched
from pathex.masks import Mask, own_module

_ATTEMPTS = 12
RECIPE = "pathex_compaction"
"""The attribute of a compacted network that says what was cut."""


class Compaction:
    """What can be taken out of a network without a change of what it computes in evaluation mode.

    Made by `plan`.

    Attributes:
        mask: The mask of the smaller network: kept weights that something flows through.
        kept: By tensor and dimension the places that stay, where some go.
    """

    def __init__(self, model: nn.Module, channels: Channels, mask: Tensors) -> None:
        self._model, self._channels, self._masked = model, channels, mask
        self._decide()

    def _decide(self) -> None:
        self._decision = found = decide(self._channels)
        self._recipe = _recipe(self._channels, found)
        self.kept = self._recipe["kept"]
        entries = {name: cut(found.mask[name], self.kept.get(name, {})) for name in self._masked}
        metadata = dict(getattr(self._masked, "metadata", {}))
        self.mask = Mask(entries, metadata)

    def apply(self) -> nn.Module:
        """The smaller network: a copy of the model's own modules, in its precision, mode, and on its device."""
        return self._smaller(copied(self._model))

    def _smaller(self, network: nn.Module) -> nn.Module:
        tensors, found = dict(self._decision.weights), self._decision
        for path, shift in found.shifts.items():
            bias = dict(network.get_submodule(path).named_parameters(recurse=False)).get("bias")
            tensors[f"{path}.bias" if path else "bias"] = (
                shift if bias is None else shift + bias.detach().cpu().double()
            )
        carve(network, self._recipe, tensors)
        setattr(network, RECIPE, copy.deepcopy(self._recipe))
        return network

    def _hold(self, dense: nn.Module, inputs: list[Inputs], expected: list[list[Tensor]]) -> None:
        """Compare with the masked network; where the code of a module does not follow, keep its channels."""
        for left in reversed(range(_ATTEMPTS)):
            fault = fault_of(self._smaller(copied(dense)), inputs, expected)
            if fault is None:
                return
            where, why = fault
            if not pin(self._channels, self._decision.removed, where, why, everything=left == 1):
                break
            self._decide()
        raise UnsupportedOperation(
            f"{type(dense).__name__} cannot be compacted: a copy with all of its channels gives {why}; is its "
            "forward pass deterministic?"
        )

    def explain(self) -> str:
        """For each layer with a mask its shape before and after, and why channels stay that nothing needs."""
        lines = []
        for name in self._masked:
            shape = self._channels.tensors[name].shape
            after = self.mask[name].shape
            line = f"{name}: {'x'.join(map(str, shape))}"
            if shape != after:
                line += f" -> {'x'.join(map(str, after))}"
            why = self._why(name)
            lines.append(f"{line}; stays: {why}" if why else line)
        return "\n".join(lines)

    def _why(self, name: str) -> str:
        counts: dict[str, int] = {}
        for label in self._channels.labels.places.get((name, 0), torch.empty(0)).tolist():
            found = self._decision.reasons.get(label)
            if found is not None:
                counts[found] = counts.get(found, 0) + 1
        return ", ".join(f"{count} ({found})" for found, count in counts.items())


def compact(model: nn.Module, mask: Tensors, example_input: Any) -> nn.Module:
    """Take the channels out of a network that its mask leaves without use: same outputs, fewer and smaller products.

    A channel goes if no kept weight on the way to an output reads it, or if none that depends on the input reaches it;
    what it then is constant is folded into the biases behind it. What is equal is the function in evaluation mode
    (BatchNorm by its statistics), for any size of images and batches that the network takes.

    Args:
        model: The network; left as it is.
        mask: Name to bool tensor, True = kept.
        example_input: Images ``(N, ...)``, or a tuple of arguments, or a dictionary of keyword arguments.

    Returns:
        A copy of the network's own modules with fewer channels and zeros where the mask has no weight, in the mode of
        the model. `plan` also says what went and why, and has the mask of the smaller network.

    Raises:
        UnsupportedOperation: If the network cannot be traced or run in float64, or gives other outputs each time.
        InvalidInput: If there is no image.
        MaskMismatch: If the mask does not fit the model.

    Examples:
        >>> from pathex import Mask
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> mask = Mask({"0.weight": torch.ones(4, 3).bool(), "2.weight": torch.tensor([[1, 0, 0, 0]] * 2).bool()})
        >>> compact(net, mask, torch.ones(1, 3))
        Sequential(
          (0): Linear(in_features=3, out_features=1, bias=True)
          (1): ReLU()
          (2): Linear(in_features=1, out_features=2, bias=True)
        )
    """
    return plan(model, mask, example_input).apply()


def plan(model: nn.Module, mask: Tensors, example_input: Any) -> Compaction:
    """Decide what `compact` would take out, and try it: the arguments and errors are those of `compact`.

    Costs a trace, and a few passes over two and three images in float64 on the CPU.

    Returns:
        What can go, why the rest stays, and the mask of the smaller network; its ``apply()`` makes that.
    """
    model = own_module(model)
    Mask(mask).check(model)
    channels, dense, inputs = read_channels(model, mask, example_input)
    with torch.no_grad(), untouched(dense):
        compaction = Compaction(model, channels, mask)
        compaction._hold(dense, inputs, expected_of(dense, inputs))
    return compaction


def read_channels(model: nn.Module, mask: Tensors, example_input: Any) -> tuple[Channels, nn.Module, list[Inputs]]:
    """The channels of a masked network, its copy in float64, and images to try it on."""
    graph = trace(model, example_input)
    dense = copied(model).cpu().double().eval()
    with torch.no_grad(), untouched(dense):
        for name, kept in mask.items():
            dense.get_parameter(name).mul_(kept)
        tensors = dict(dense.named_buffers(remove_duplicate=False)) | dict(dense.named_parameters())
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        channels = Channels(graph, dense, tensors, {name: kept.cpu() for name, kept in mask.items()})
        channels.run()
        inputs = inputs_of(example_input, graph.fixed_batch)
        keep_for_training(channels, dense, inputs[0])
    return channels, dense, inputs


def _recipe(channels: Channels, decision: Decision) -> Recipe:
    kept: dict[str, dict[str, list[int]]] = {}
    for (name, dim), labels in channels.labels.places.items():
        stays = ~decision.removed[labels]
        if not stays.all():
            kept.setdefault(name, {})[str(dim)] = stays.nonzero().flatten().tolist()
    biases = [path for path in decision.shifts if channels.modules[path].bias is None]
    shapes = {name: list(channels.tensors[name].shape) for name in kept}
    for path in biases:
        outputs = kept.get(f"{path}.weight" if path else "weight", {}).get("0")
        if outputs is not None:
            kept[f"{path}.bias" if path else "bias"] = {"0": outputs}
    return {"kept": kept, "shapes": shapes, "biases": biases, "attributes": _attributes(channels, decision)}


def _attributes(channels: Channels, decision: Decision) -> dict[str, dict[str, int]]:
    """Of modules that count heads of which some go: how many stay, and how wide they are together."""
    found: dict[str, dict[str, int]] = {}
    for path, name, labels, width in channels.heads:
        stays, before = int((~decision.removed[labels]).sum()), len(labels)
        if stays < before:
            module = channels.modules[path]
            wide = {n: stays * width for n in _WIDTHS if getattr(module, n, None) == before * width}
            found[path] = {name: stays, **wide}
    return found


_WIDTHS = ("attn_dim", "inner_dim", "all_head_size", "all_head_dim")

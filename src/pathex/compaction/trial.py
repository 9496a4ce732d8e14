"""Trying a smaller network: the images, what is wrong, and which channels then stay."""

import contextlib
import math
from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pathex.compaction.channels import Channels
from pathex.errors import InvalidInput, UnsupportedOperation, reason, refusing
from pathex.graph import arguments, copied, failing_module, tensors_in

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_TOLERANCE, _SMALL = 1e-10, 1e-6  # relative to the largest output, or to this


def inputs_of(example: Any, fixed: int | None) -> list[Inputs]:
    """Arguments with two and three images, or as many as the network takes, the first one that of the example."""
    if any(tensor.dim() and not len(tensor) for tensor in tensors_in(example)):
        raise InvalidInput("example_input has no images; allowed: one or more")

    def of(count: int, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        if not tensor.is_floating_point() or not tensor.dim():
            return tensor[torch.arange(count) % len(tensor)] if tensor.dim() else tensor
        more = tensor.double()[torch.arange(count) % len(tensor)]
        more[1:] += 0.1 * torch.randn(more[1:].shape, dtype=more.dtype)
        return more

    return [tree_map_only(Tensor, partial(of, count), arguments(example)) for count in ((fixed,) if fixed else (2, 3))]


def expected_of(network: nn.Module, inputs: list[Inputs]) -> list[list[Tensor]]:
    """All tensors that a network returns; `UnsupportedOperation` if it does not run in float64."""
    message = f"{type(network).__name__} does not run in float64, in which it would be compared: {{}}"
    with refusing(message, raising=UnsupportedOperation):  # whatever the code of a network raises
        return [_outputs_of(network, each) for each in inputs]


def _outputs_of(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(network(*inputs[0], **inputs[1])) if isinstance(leaf, Tensor)]


def fault_of(network: nn.Module, inputs: list[Inputs], expected: list[list[Tensor]]) -> tuple[str | None, str] | None:
    """The module at fault, as far as it is known, and what is wrong; None if outputs are as expected."""
    try:
        found = [_outputs_of(network, each) for each in inputs]
    except Exception as error:  # whatever the code of a network raises when its sizes are not those it expects
        return failing_module(network, error), reason(error)
    return None if all(map(_equal, found, expected)) else (None, "other outputs")


def _equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(d <= _TOLERANCE for d in map(difference, found, expected))


def difference(found: Tensor, expected: Tensor, small: float = _SMALL) -> float:
    """The largest difference, relative to the largest finite entry or ``small``; of equal infinities, and of NaN, 0."""
    if found.shape != expected.shape:
        return math.inf
    a, b = (each.to(torch.promote_types(each.dtype, torch.float64)) for each in (found, expected))
    same = (a == b) | (a.isnan() & b.isnan())
    off = (a - b).abs().masked_fill(same, 0).nan_to_num(nan=math.inf, posinf=math.inf)
    size = b.abs().nan_to_num(nan=0, posinf=0)
    return float(off.max()) / max(float(size.max()), small) if b.numel() else 0.0


def pin(channels: Channels, removed: Tensor, where: str | None, why: str, everything: bool) -> bool:
    """Keep the channels that a fault may be due to, the fewest first, all with their constants last; False if kept."""
    kind = type(channels.modules.get(where or ""))
    risky = [(channels.modules.get(node.module[0]), ids) for node, ids in channels.risky]
    touched = [part.ids for node in channels.graph.nodes if node.module[0] == where for part in channels.parts(node)]
    choices = [] if where is None else [[ids for module, ids in risky if type(module) is kind], touched]
    choices = [] if everything else [*choices, [ids for _, ids in risky]]
    values = [part for node in channels.graph.nodes for part in channels.parts(node)]
    if all(part.unknown_of.all() for part in values) and not removed.any():
        return False
    chosen = next((ids for ids in choices if ids and removed[torch.cat(ids)].any()), None)
    if chosen is None:
        chosen = [torch.arange(channels.labels.count)]
        for value in values:
            value.unknown_of = torch.ones_like(value.unknown_of)
        for reader in channels.readers:
            reader.unknown, reader.number = torch.ones_like(reader.unknown), torch.zeros_like(reader.number)
    channels.labels.pin(torch.cat(chosen), f"without it: {why} in {where or 'the network'}")
    return True


def keep_for_training(channels: Channels, network: nn.Module, inputs: Inputs) -> None:
    """Pin what modules read that run in training alone, such as auxiliary heads."""
    used = {p for name, p in network.named_parameters() if name in channels.graph.parameters}
    idle = {path for path, module in network.named_modules() if _is_idle(module, used)}
    if not idle:
        return
    made: dict[int, tuple[str, Tensor]] = {}  # with the tensor, so that its number stays its own
    sources: set[str] = set()

    def before(_: nn.Module, args: Any) -> None:
        sources.update(made[id(leaf)][0] for leaf in tree_leaves(args) if id(leaf) in made)

    def after(path: str, _: nn.Module, __: Any, result: Any) -> None:
        made.update((id(leaf), (path, leaf)) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))

    trained = copied(network).train()
    for path, module in trained.named_modules():
        module.register_forward_hook(partial(after, path))
        if path in idle:
            module.register_forward_pre_hook(before)
    with contextlib.suppress(Exception):  # such as BatchNorm over two images of one pixel
        trained(*inputs[0], **inputs[1])
    for node in channels.graph.nodes:
        if any(node.module[0] == path or node.module[0].startswith(f"{path}.") for path in sources):
            for part in channels.parts(node):
                channels.labels.pin(part.ids, f"{', '.join(sorted(idle))} may read it in training")


def _is_idle(module: nn.Module, used: Collection[nn.Parameter]) -> bool:
    own = list(module.parameters())
    return bool(own) and not any(parameter in used for parameter in own)

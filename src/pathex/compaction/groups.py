"""Channels that can only go together: filters, attention heads, hidden widths, and all that meet them in sums."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathex.compaction.channels import Channels
from pathex.compaction.decision import Deciding
from pathex.compaction.plan import plan, read_channels
from pathex.errors import PathexWarning, UnsupportedOperation, check_names, listed
from pathex.masks import Mask


@dataclass(frozen=True)
class ChannelGroups:
    """What `compact` can take out of a network, group by group.

    Attributes:
        count: Number of groups.
        places: For each weight, by dimension, the group that each place belongs to; ``count`` where it has to stay.
    """

    count: int
    places: Mapping[str, tuple[Tensor, ...]]

    def sums(self, entries: Mapping[str, Tensor]) -> Tensor:
        """Sum over all entries of each group, float64 ``(count,)``."""
        total = torch.zeros(self.count + 1, dtype=torch.float64)
        for name, entry in entries.items():
            for dim, groups in enumerate(self.places[name]):
                total.index_add_(0, groups, entry.double().movedim(dim, 0).flatten(1).sum(1))
        return total[:-1]

    def masked(self, keep: Tensor, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A mask without the entries of groups that are not kept; ``keep`` is bool ``(count,)``."""
        stays, found = self.staying(keep), {}
        for name, entry in mask.items():
            found[name] = entry.cpu().clone()
            for dim, places in enumerate(stays[name]):
                found[name].movedim(dim, -1).logical_and_(places)
        return found

    def staying(self, keep: Tensor) -> dict[str, list[Tensor]]:
        """For each weight, by dimension, the places that stay where some groups are kept."""
        keep = torch.cat([keep, torch.ones(1, dtype=torch.bool)])
        return {name: [keep[groups] for groups in dims] for name, dims in self.places.items()}

    def best(self, order: Tensor) -> Tensor:
        """The first group in an order, for each dimension of each weight that is made of groups alone."""
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        found = torch.zeros(self.count, dtype=torch.bool)
        for groups in (each for dims in self.places.values() for each in dims):
            if int(groups.max()) < self.count:
                found[groups[rank[groups].argmin()]] = True
        return found


def channel_groups(model: nn.Module, example_input: Any, names: Collection[str]) -> ChannelGroups:
    """The groups of channels that `compact` takes out once a mask of some weights removes them.

    A group is a class of places in weights and other parameters that can only go together. Those that a weight outside
    ``names`` writes to stay, as do those that the code of a module does not let go, which is tried.

    Args:
        model: The network; left as it is.
        example_input: As for `compact`.
        names: Weights that a mask may have.

    Returns:
        The groups, for these weights.

    Raises:
        UnsupportedOperation: If the network cannot be traced or run in float64, or no channel of it can go.
        UnknownName: If a name is not that of a parameter.
    """
    check_names("weight", names, dict(model.named_parameters()))
    channels, _, _ = read_channels(model, {}, example_input)
    found = Deciding(channels)
    found.fix()
    fixed = found.stays | ~found.seen
    for reader in channels.readers:
        if reader.weight not in names:
            fixed |= found.members(reader.rows)
    groups = _numbered(channels, found.classes, fixed, names)
    for place, left in _held(model, example_input, groups).items():
        fixed[found.classes[channels.labels.places[place][left]]] = True
    groups = _numbered(channels, found.classes, fixed, names)
    if not groups.count:
        raise UnsupportedOperation(f"no channel of {type(model).__name__} can be taken out by a mask of its weights")
    free = ((found.classes[labels.unique()], path) for path, labels in channels.unnamed)
    if whole := sorted({path for classes, path in free if len(classes[~fixed[classes]].unique()) < 2}):
        why = "they split channels, as into heads, whose number they hold under no known name, such as num_heads"
        warnings.warn(f"all channels of {listed(whole)} stay: {why}", PathexWarning, stacklevel=4)
    return groups


def _numbered(channels: Channels, classes: Tensor, fixed: Tensor, names: Collection[str]) -> ChannelGroups:
    """The groups among the places of some weights."""
    labels = channels.labels.places
    dims = {name: range(channels.tensors[name].dim()) for name in names}
    own = {(name, dim): classes[labels[name, dim]] for name in names for dim in dims[name] if (name, dim) in labels}
    free = torch.zeros_like(fixed)
    for places in own.values():
        free[places] = True
    free &= ~fixed
    count = int(free.sum())
    number = torch.where(free, free.cumsum(0) - 1, count)
    stays = {name: [torch.full((size,), count) for size in channels.tensors[name].shape] for name in names}
    return ChannelGroups(
        count, {n: tuple(number[own[n, d]] if (n, d) in own else stays[n][d] for d in dims[n]) for n in names}
    )


def _held(model: nn.Module, example_input: Any, groups: ChannelGroups) -> dict[tuple[str, int], Tensor]:
    """What a network still has, by weight and dimension, where it is more than the one group a layer that was left."""
    if not groups.count:
        return {}
    keep = groups.best(torch.arange(groups.count))
    ones = {name: torch.ones(model.get_parameter(name).shape, dtype=torch.bool) for name in groups.places}
    kept = plan(model, Mask(groups.masked(keep, ones)), example_input).kept
    found: dict[tuple[str, int], Tensor] = {}
    for name, dims in groups.staying(keep).items():
        for dim, stays in enumerate(dims):
            left = torch.tensor(kept.get(name, {}).get(str(dim), range(len(stays))), dtype=torch.int64)
            if not stays[left].all():
                found[name, dim] = left
    return found

"""Labels of channels: which places of tensors can only go together, and which have to stay."""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-12  # relative: a mean of equal numbers differs from them by its rounding


class Labels:
    """A number for each place along each dimension of each tensor of a network, ties between them, and pins.

    0 stands for places that no tensor of the network decides about, such as the channels of its input.
    """

    def __init__(self) -> None:
        self.count = 1
        self.places: dict[tuple[str, int], Tensor] = {}
        self.pins: list[tuple[Tensor, str]] = []
        self._ties: list[Tensor] = []

    def along(self, name: str, dim: int, size: int) -> Tensor:
        """The labels along a dimension of a tensor."""
        if (name, dim) not in self.places:
            self.places[name, dim] = torch.arange(self.count, self.count + size)
            self.count += size
        return self.places[name, dim]

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Places that go together, entry by entry of two tensors of labels that broadcast."""
        pairs = torch.stack([each.flatten() for each in torch.broadcast_tensors(*compact(a, b))]).unique(dim=1)
        loose = (pairs == 0).any(0)
        self.pin(pairs[:, loose], reason)
        self._ties.append(pairs[:, ~loose & (pairs[0] != pairs[1])])

    def pin(self, labels: Tensor, reason: str) -> None:
        """Places that have to stay."""
        found = compact(labels)[0].unique()
        found = found[found > 0]
        if len(found):
            self.pins.append((found, reason))

    def roots(self) -> Tensor:
        """For each label the smallest one that it is tied to."""
        root = torch.arange(self.count)
        a, b = torch.cat(self._ties, 1) if self._ties else torch.empty(2, 0, dtype=torch.int64)
        while True:
            low, high = torch.minimum(root[a], root[b]), torch.maximum(root[a], root[b])
            if torch.equal(low, high):
                return root
            root = root.scatter_reduce(0, high, low, "amin")
            while not torch.equal(root[root], root):
                root = root[root]


def compact(*tensors: Tensor) -> list[Tensor]:
    """Tensors that broadcast to what these do, without repeating what is only repeated in memory."""
    return [each[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in each.stride())] for each in tensors]


def varies(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension."""
    if labels.shape[dim] == 1 or labels.stride(dim) == 0:
        return False
    small = compact(labels)[0]
    return bool((small != small.narrow(dim, 0, 1)).any())


def first_of(tensor: Tensor, *dims: int) -> Tensor:
    """The first entries along some dimensions, which stay with size 1."""
    for dim in dims:
        tensor = tensor.narrow(dim, 0, 1)
    return tensor


PARTS = ("labels", "unknown", "number")


@dataclass
class Value:
    """What is known of a value of the network that depends on its input.

    ``labels``, ``unknown`` (it depends on the input, or varies over a channel) and ``number`` (where it does not) have
    its shape; the last two are equal for all entries with one label. ``unknown_of`` is given for each of ``ids``.
    """

    labels: Tensor
    unknown: Tensor
    number: Tensor
    ids: Tensor
    unknown_of: Tensor


def settled(labels: Tensor, unknown: Tensor, number: Tensor) -> Value:
    """A value whose channels are constant only where all of their entries are, and the same."""
    shape = labels.shape
    small = compact(labels)[0]
    over = [dim for dim in range(labels.dim()) if small.shape[dim] != shape[dim]]
    unknown = unknown | ~number.isfinite()
    number = number.double().masked_fill(unknown, 0)
    unknown, number = torch.broadcast_to(unknown, shape), torch.broadcast_to(number, shape)
    high, low = (number.amax(over, True), number.amin(over, True)) if over else (number, number)
    unknown = unknown.any(over, True) if over else unknown
    ids, place = small.unique(return_inverse=True)
    flat = place.flatten()

    def by_label(entries: Tensor, how: str) -> Tensor:
        start = torch.zeros(len(ids), dtype=torch.float64)
        return start.scatter_reduce(0, flat, entries.double().flatten(), how, include_self=False)

    top, bottom = by_label(high, "amax"), by_label(low, "amin")
    open_ = (by_label(unknown, "amax") > 0) | (top - bottom > _ROUNDING * top.abs().clamp_min(1)) | (ids == 0)
    level = top.masked_fill(open_, 0)
    return Value(labels, open_[place].expand(shape), level[place].expand(shape), ids, open_)

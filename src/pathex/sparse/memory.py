"""The memory of a program: planes that are taken, and given back after their last use."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathex.graph import Node
from pathex.sparse import kernels
from pathex.sparse.planes import Planes


@dataclass(eq=False)
class Memory:
    """A piece of memory, and how many values live in it."""

    form: Hashable
    array: Any
    tensor: Tensor
    floats: int
    live: int = 0

    @property
    def used(self) -> Tensor:
        """All of it but the room at its end."""
        return self.tensor[: self.floats]

    @property
    def address(self) -> int:
        """Where it begins, in bytes."""
        return int(self.array.ctypes.data)


@dataclass(frozen=True)
class Place:
    """Planes in memory."""

    planes: Planes
    memory: Memory

    @property
    def address(self) -> int:
        """Of the first pixel, in bytes."""
        return self.memory.address + 4 * self.planes.lead * self.planes.lanes

    @property
    def step(self) -> int:
        """Floats from a channel to the next one."""
        return self.planes.size * self.planes.lanes

    @property
    def view(self) -> Tensor:
        """The pixels as ``(lanes, channels, height, width)``."""
        return self.planes.view(self.memory.tensor)


def between(source: Place, target: Place) -> dict[str, int]:
    """The fields of a step from planes to planes."""
    x, y = source.planes, target.planes
    found = {"x": source.address, "source_plane": source.step, "source_pitch": x.pitch, "y": target.address}
    return found | {"plane": target.step, "pitch": y.pitch, "height": x.height, "width": x.width}


class Store:
    """Pieces of memory by their form; one that comes back is used again, its padding as it was.

    Args:
        uses: How often each node is read.
    """

    def __init__(self, uses: dict[Node, int]) -> None:
        self._free: dict[Hashable, list[Memory]] = defaultdict(list)
        self._uses = dict(uses)
        self._held: dict[Node, list[Memory]] = defaultdict(list)
        self.floats = 0

    def take(self, form: Hashable, floats: int) -> Memory:
        """A piece of this form, zeros when it is new."""
        if self._free[form]:
            return self._free[form].pop()
        self.floats += floats
        array = kernels.zeros(floats)
        return Memory(form, array, torch.from_numpy(array), floats)

    def give_back(self, memory: Memory) -> None:
        """A piece that nothing lives in."""
        self._free[memory.form].append(memory)

    def hold(self, node: Node, memories: Iterable[Memory]) -> None:
        """The value of a node lives in these pieces."""
        for memory in memories:
            if memory not in self._held[node]:
                memory.live += 1
                self._held[node].append(memory)

    def held(self, nodes: Iterable[Node]) -> list[Memory]:
        """The pieces in which the values of nodes live."""
        return list(dict.fromkeys(memory for node in nodes for memory in self._held[node]))

    def read(self, nodes: Iterable[Node]) -> list[Node]:
        """Nodes have been read once; those that are read no more, whose memory is free."""
        done = []
        for node in nodes:
            self._uses[node] -= 1
            if self._uses[node] == 0:
                done.append(node)
                for memory in self._held.pop(node, ()):
                    memory.live -= 1
                    if memory.live == 0:
                        self.give_back(memory)
        return done

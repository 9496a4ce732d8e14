"""Several processes that score together: each does its share of the work, and all end with the same scores.

Sums are taken in each process first and over the processes then: they may differ from those of a single process in
their last bits.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pathex import errors
from pathex.errors import InvalidInput, PathexError

Group = Any
"""A ``torch.distributed.ProcessGroup``; ``default``: all processes, if there are several; None: this one alone."""

_KNOWN = "_known_to_all_of"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Processes:
    """The processes that score together. All of them call its methods, in the same order.

    Attributes:
        rank: Number of this process among them, from 0.
        world_size: How many they are.
        group: Their ``torch.distributed.ProcessGroup``; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    group: Any = None

    @contextlib.contextmanager
    def barrier(self) -> Iterator[None]:
        """Leave a block when all processes have done so; an error in one of them is raised in all."""
        try:
            yield
        except Exception as error:
            # Of an error that all know of nobody hears a second time, further out.
            if getattr(error, _KNOWN, None) is not self.group:
                setattr(error, _KNOWN, self.group)
                self._exchange(error)
            raise
        self._exchange(None)

    def _exchange(self, error: Exception | None) -> None:
        """Tell all whether this process failed, and raise the error of another one that did."""
        if self.world_size == 1:
            return
        failed = torch.tensor(int(error is not None), device=self._devices()[0])
        dist.all_reduce(failed, dist.ReduceOp.MAX, group=self.group)
        if not failed:
            return
        found = self._all_gather(None if error is None else (type(error).__name__, str(error)))
        if error is None:
            rank, (name, message) = next((rank, entry) for rank, entry in enumerate(found) if entry is not None)
            raise _remote_error(name, f"process {rank} of {self.world_size}: {message}", self.group)

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes by rank: plain data, and tensors, which come on the CPU if there are others."""
        if self.world_size == 1:
            return [value]
        with self.barrier():
            plain = _to(value, torch.device("cpu"))
        return self._all_gather(plain)

    def _all_gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def broadcast(self, value: T, device: torch.device, source: int = 0) -> T:
        """The value of the process with rank ``source``, its tensors on ``device``."""
        if self.world_size == 1:
            return value
        found = [_to(value, torch.device("cpu")) if self.rank == source else None]
        dist.broadcast_object_list(found, group=self.group, group_src=source)
        received: T = _to(found[0], device)
        return received

    def all_reduce(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the processes of tensors by name, with the same names, shapes and dtypes everywhere."""
        if self.world_size == 1:
            return dict(tensors)
        devices, sums = self._devices(), {}
        for name, tensor in tensors.items():
            able = tensor.device.type in {device.type for device in devices}
            total = tensor.detach().to(tensor.device if able else devices[0], copy=True).contiguous()
            dist.all_reduce(total, group=self.group)
            sums[name] = total.to(tensor.device)
        return sums

    def sum_over(self, items: Iterable[T], compute: Callable[[T], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The sum of what each item contributes, tensors by name; the processes share the items out, at least one."""
        sums: dict[str, Tensor] = {}
        remaining = iter(items)
        while share := list(islice(remaining, self.world_size)):
            has_item = self.rank < len(share)
            with self.barrier():
                # Without an item, the first one is repeated: weights that are sharded need every process in every pass.
                part = compute(share[self.rank if has_item else 0])
            for name, term in part.items():
                # Gradients of two weights may be one tensor, so the first is copied before others are added to it.
                if name not in sums:
                    sums[name] = term.clone() if has_item else torch.zeros_like(term)
                elif has_item:
                    sums[name] += term
            del part  # not beside the next one
        return self.all_reduce(sums)

    def map(self, items: Sequence[T], compute: Callable[[T], R], device: torch.device) -> list[R]:
        """Results in the order of the items, which the processes share out; tensors in them go to ``device``."""
        if self.world_size == 1:
            return [compute(item) for item in items]
        padded = -(-len(items) // self.world_size) * self.world_size
        with self.barrier():
            # As in `sum_over`, all of them compute equally often.
            numbers = range(self.rank, padded, self.world_size)
            own = [compute(items[n] if n < len(items) else items[0]) for n in numbers]
        found = self.all_gather(own)
        return [_to(found[n % self.world_size][n // self.world_size], device) for n in range(len(items))]

    def check_consistent(self, facts: Mapping[str, object]) -> None:
        """Raise `InvalidInput`, which names it, if one of the facts is not the same in all processes."""
        first, *others = self.all_gather(dict(facts))
        for rank, other in enumerate(others, 1):
            for what in {**first, **other}:
                if what not in first or what not in other or first[what] != other[what]:
                    raise InvalidInput(
                        f"{what} of process {rank} is not that of process 0: all processes must score the same network "
                        "in the same way (or each by itself, with group=None)"
                    )

    def _devices(self) -> list[torch.device]:
        """Where tensors can be when they are sent: what the back ends of the group take, written ``cpu:gloo,...``."""
        backends = dist.get_backend_config(self.group)
        return [torch.device(backend.partition(":")[0]) for backend in backends.split(",")]


ALONE: Processes = Processes()


def processes_of(group: Group = "default") -> Processes:
    """The processes of a `Group`; `pathex.errors.InvalidInput` if this one is not among them."""
    if group is None or not dist.is_available() or not dist.is_initialized():
        return ALONE
    if group == "default":
        group = dist.group.WORLD
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise InvalidInput("this process is not in the group: only its members can score together")
    if not isinstance(group, dist.ProcessGroup):
        shown = repr(group) if isinstance(group, str) else type(group).__name__
        raise InvalidInput(f"group must be a torch.distributed.ProcessGroup, 'default' or None, not {shown}")
    size = dist.get_world_size(group)
    return ALONE if size == 1 else Processes(dist.get_rank(group), size, group)


def _to(value: Any, device: torch.device) -> Any:
    """The same data with its tensors on a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to(device), value)


def _remote_error(name: str, message: str, group: Any) -> PathexError:
    """The error of another process: of its class, if that is one of pathex's own."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PathexError):
        # Made without the constructor, which may take what the message was put together from.
        error = kind.__new__(kind, message)
    else:
        error = PathexError(f"{message} ({name})")
    setattr(error, _KNOWN, group)
    return error


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is spread over processes, a ``DTensor``."""
    room = sys.modules.get("torch.distributed.tensor")  # there is none before this was imported
    return room is not None and isinstance(tensor, room.DTensor)


def in_one_piece(tensor: Tensor) -> Tensor:
    """The whole of a tensor; of one that is spread over processes all of them have to ask together."""
    if not is_sharded(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def like(value: Any, place: Tensor) -> Any:
    """A whole tensor, the same in every process, on the device of another and spread as that is if the shapes agree."""
    if not is_sharded(place) or not isinstance(value, Tensor) or is_sharded(value) or value.shape != place.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = place.device_mesh, place.placements  # type: ignore[attr-defined]
    # Every process has the whole, so that none has to send its part.
    return distribute_tensor(value.to(place.device), mesh, placements, src_data_rank=None)

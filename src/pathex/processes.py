"""Several processes that score together: every one ends with what a single process would have found.

The work is cut the same way however many processes there are, every process does its share, and what they find is
added in the order of the work. So the sequence of additions is that of a single process, bit for bit.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pathex import errors
from pathex.errors import InvalidInput, PathexError

__all__ = ["ALONE", "Group", "Processes", "processes_of"]

Group = Any
"""A ``torch.distributed.ProcessGroup``; ``default``: all processes, if there are several; None: this one alone."""

_KNOWN = "_known_to_all_of"

_MESSAGE = 1 << 22  # entries

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Processes:
    """The processes that score together.

    Every method but `alone` is called by all of them, in the same order. Each begins by telling the others whether all
    went well, so that an error in one process is an error in every one instead of a wait without end.

    Attributes:
        rank: Number of this process among them, from 0.
        size: How many they are.
        group: Their ``torch.distributed.ProcessGroup``; None for a single process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Leave a block when all processes have done so, all with an error if one of them failed.

        Yields:
            Nothing.

        Raises:
            PathexError: If another process failed, of the same class if that was one of pathex's own errors.
        """
        try:
            yield
        except Exception as error:
            # Of an error that all know of nobody hears a second time, further out.
            if getattr(error, _KNOWN, None) is not self.group:
                setattr(error, _KNOWN, self.group)
                self._meet(error)
            raise
        self._meet(None)

    def _meet(self, error: Exception | None) -> None:
        """Tell all whether this process failed, and hear of the others."""
        if self.alone:
            return
        failed = torch.tensor(int(error is not None), device=self._devices()[0])
        dist.all_reduce(failed, dist.ReduceOp.MAX, group=self.group)
        if not failed:
            return
        found = self._gather(None if error is None else (type(error).__name__, str(error)))
        if error is None:
            rank, (name, message) = next((rank, told) for rank, told in enumerate(found) if told is not None)
            raise _as_told(name, f"process {rank} of {self.size}: {message}", self.group)

    def told(self, value: T) -> list[T]:
        """What every process says.

        Args:
            value: What this one says: plain data and tensors, in tuples, lists or dictionaries.

        Returns:
            The values by rank; tensors on the CPU if there are other processes.
        """
        if self.alone:
            return [value]
        with self.together():
            plain = _moved(value, torch.device("cpu"))
        return self._gather(plain)

    def agree(self, facts: Mapping[str, object]) -> None:
        """Refuse processes that are about to do different things.

        Args:
            facts: What has to be the same everywhere, as plain data by what it is.

        Raises:
            InvalidInput: If something is not; the message names it.
        """
        first, *others = self.told(dict(facts))
        for rank, other in enumerate(others, 1):
            for what in {**first, **other}:
                if what not in first or what not in other or first[what] != other[what]:
                    raise InvalidInput(
                        f"{what} of process {rank} is not that of process 0: all processes must score the same network "
                        "in the same way (or each by itself, with group=None)"
                    )

    def received(self, tensor: Tensor, source: int) -> Tensor:
        """The tensor of one process.

        Args:
            tensor: Of the same shape and dtype in every process.
            source: The rank of the one that counts.

        Returns:
            A contiguous tensor on the device of ``tensor``: its own in the source, a new one elsewhere.
        """
        if self.alone:
            return tensor
        home, devices = tensor.device, self._devices()
        away = home if home.type in {device.type for device in devices} else devices[0]
        sent = tensor.detach().to(away).contiguous() if self.rank == source else _room(tensor, away)
        dist.broadcast(sent, group=self.group, group_src=source)
        return sent.to(home)

    def received_all(self, tensors: Sequence[Tensor], source: int, device: torch.device) -> list[Tensor]:
        """Tensors of one process, which the others know nothing of.

        Args:
            tensors: What this process would send.
            source: The rank of the one that counts.
            device: Where they go.

        Returns:
            Its tensors.
        """
        forms = self.told([(tensor.shape, tensor.dtype) for tensor in tensors])[source]
        if self.rank == source:
            return [self.received(tensor, source) for tensor in tensors]
        return [self.received(torch.empty(shape, dtype=dtype, device=device), source) for shape, dtype in forms]

    def each(self, items: Sequence[T], compute: Callable[[T], R], device: torch.device) -> list[R]:
        """Something small about every item, computed once and known to all.

        Args:
            items: The same in every process.
            compute: From an item to plain data and tensors.
            device: Where tensors go.

        Returns:
            The results in the order of the items.
        """
        if self.alone:
            return [compute(item) for item in items]
        whole = -(-len(items) // self.size) * self.size
        with self.together():
            # Who has nothing left repeats the first item: weights that are spread over processes need all of them.
            own = [compute(items[n] if n < len(items) else items[0]) for n in range(self.rank, whole, self.size)]
        found = self.told(own)
        return [_moved(found[number % self.size][number // self.size], device) for number in range(len(items))]

    def summed(self, items: Iterable[T], compute: Callable[[T], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The sum over items of what each of them contributes, added in their order.

        Besides the sum a process holds one contribution, and a message of 4 million entries at a time of another's.

        Args:
            items: The same in every process, at least one.
            compute: From an item to tensors by name, the same names, shapes and dtypes for each.

        Returns:
            Name to sum, in new tensors.
        """
        sums: dict[str, Tensor] = {}
        waiting = iter(items)
        while group := list(islice(waiting, self.size)):
            with self.together():
                # Who has nothing left to do repeats the first item and so knows the names and shapes like all others.
                part = compute(group[self.rank if self.rank < len(group) else 0])
            for name, term in self._in_turn(part, range(len(group))):
                # Gradients of two weights may be one tensor, so the first is copied before others are added to it.
                sums[name] = sums[name].add_(term) if name in sums else term.clone()
            del part, term  # not beside the next one
        return sums

    def same(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of process 0 in every process.

        Args:
            tensors: By name, the same names, shapes and dtypes everywhere.

        Returns:
            Name to tensor.
        """
        if self.alone:
            return dict(tensors)
        return {name: tensor.clone() for name, tensor in self._in_turn(tensors, range(1))}

    def _in_turn(self, tensors: Mapping[str, Tensor], sources: range) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of every source in turn; several go in one message, which bounds time and memory."""
        if self.alone:
            yield from tensors.items()
            return
        for names in _bundles(tensors):
            own = torch.cat([tensors[name].detach().reshape(-1) for name in names])
            for source in sources:
                parts = self.received(own, source).split([tensors[name].numel() for name in names])
                yield from ((name, part.view(tensors[name].shape)) for name, part in zip(names, parts, strict=True))

    def _gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def _devices(self) -> list[torch.device]:
        """Where tensors can be when they are sent: what the back ends of the group take, written ``cpu:gloo,...``."""
        backends = dist.get_backend_config(self.group)
        return [torch.device(backend.partition(":")[0]) for backend in backends.split(",")]


ALONE = Processes()


def processes_of(group: Group = "default") -> Processes:
    """The processes of a group.

    Args:
        group: A ``torch.distributed.ProcessGroup`` that this process is in; ``default``: that of
            ``torch.distributed``, if it is initialised; None: this process alone.

    Returns:
        The processes.

    Raises:
        InvalidInput: If this process is not in the group, or it is no group.
    """
    if group is None or not dist.is_available() or not dist.is_initialized():
        return ALONE
    if isinstance(group, str):
        if group != "default":
            raise InvalidInput(f"group must be a torch.distributed.ProcessGroup, 'default' or None, not {group!r}")
        group = dist.group.WORLD
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise InvalidInput("this process is not in the group: only its members can score together")
    if not isinstance(group, dist.ProcessGroup):
        kind = type(group).__name__
        raise InvalidInput(f"group must be a torch.distributed.ProcessGroup, 'default' or None, not {kind}")
    size = dist.get_world_size(group)
    return ALONE if size == 1 else Processes(dist.get_rank(group), size, group)


def _bundles(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of tensors of one dtype and device, in their order, that are small enough together to go in one message."""
    bundle: list[str] = []
    entries = 0
    for name, tensor in tensors.items():
        alike = not bundle or (tensor.dtype, tensor.device) == (tensors[bundle[0]].dtype, tensors[bundle[0]].device)
        if bundle and (entries + tensor.numel() > _MESSAGE or not alike):
            yield bundle
            bundle, entries = [], 0
        bundle.append(name)
        entries += tensor.numel()
    yield bundle


def _room(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _moved(value: Any, device: torch.device) -> Any:
    """The same data with its tensors on a device."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields") and not isinstance(value, torch.Size):
        return type(value)(_moved(entry, device) for entry in value)
    if isinstance(value, dict):
        return {key: _moved(entry, device) for key, entry in value.items()}
    return value


def _as_told(name: str, message: str, group: Any) -> PathexError:
    """The error of another process: of its class, if that is one of pathex's own."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PathexError):
        # Made without the constructor, which may take what the message was put together from.
        error = kind.__new__(kind, message)
    else:
        error = PathexError(f"{message} ({name})")
    setattr(error, _KNOWN, group)
    return error

"""Tensors that are spread over processes (``DTensor``, as ``fully_shard`` makes them): told, gathered, spread."""

import sys
from typing import Any

from torch import Tensor


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

"""Tensors that are spread over processes (``DTensor``, as ``fully_shard`` makes them): told, gathered, spread."""

import sys
from typing import Any

from torch import Tensor

__all__ = ["in_one_piece", "is_sharded", "like"]


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is spread over processes.

    Args:
        tensor: Anything.

    Returns:
        True for a ``DTensor``.
    """
    room = sys.modules.get("torch.distributed.tensor")  # there is none before this was imported
    return room is not None and isinstance(tensor, room.DTensor)


def in_one_piece(tensor: Tensor) -> Tensor:
    """The whole of a tensor; of one that is spread over processes all of them have to ask together.

    Args:
        tensor: Any tensor.

    Returns:
        The tensor itself, or what is gathered of it.
    """
    if not is_sharded(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def like(value: Any, place: Tensor) -> Any:
    """A whole tensor, on the device of another tensor and spread over processes as that is.

    Args:
        value: The same tensor in every process, or anything else.
        place: The tensor to follow.

    Returns:
        The part of this process, where ``place`` is sharded and the shapes agree; otherwise ``value`` itself.
    """
    if not is_sharded(place) or not isinstance(value, Tensor) or is_sharded(value) or value.shape != place.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = place.device_mesh, place.placements  # type: ignore[attr-defined]
    # Every process has the whole, so that none has to send its part.
    return distribute_tensor(value.to(place.device), mesh, placements, src_data_rank=None)

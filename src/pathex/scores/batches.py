"""The pruning set as it is delivered: read once, checked, and joined over the processes that score together."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pathex.distributed import Processes
from pathex.errors import InvalidInput

Batch = tuple[Tensor, Tensor | None]


def read_batches(data: Any) -> list[Batch]:
    """Read the pruning set once.

    Args:
        data: A DataLoader, an iterable of ``(x, y)`` or ``x``, one tensor ``x``, or a pair of tensors ``(x, y)``.

    Returns:
        Batches ``(x, y)``; ``y`` is None without labels.

    Raises:
        InvalidInput: If there is no image, a batch is not made of tensors, images are not finite floating-point
            numbers of one shape, or labels do not match their images.
    """
    if isinstance(data, Tensor):
        data = [data]
    elif isinstance(data, (tuple, list)) and len(data) == 2 and _is_pair(*data):
        data = [tuple(data)]
    elif isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InvalidInput(
            f"data must be a DataLoader, an iterable of (x, y) or x, or a tensor, not {type(data).__name__}"
        )
    # A DataLoader draws from torch's global generator when it starts.
    with torch.random.fork_rng(devices=[]):
        batches = [_checked(number, batch) for number, batch in enumerate(data)]
    batches = [batch for batch in batches if len(batch[0])]
    if not batches:
        raise InvalidInput("data is empty: scores need at least one image")
    return _of_one_shape(batches)


def joined(batches: Sequence[Batch], processes: Processes) -> Sequence[Batch]:
    """The pruning set of all processes, in one shape (`InvalidInput` if not), as if one had read it."""
    # Where every process read the same images and labels, these, in the batches of process 0; otherwise what all of
    # them read, one process after another, with images that several read as often as they were read.
    if processes.world_size == 1:
        return batches
    read = processes.all_gather([contents(x, y) for x, y in batches])
    if all(delivered == read[0] for delivered in read):
        return batches
    images = [sorted(image for batch in delivered for image in batch) for delivered in read]
    sources = [0] if all(other == images[0] for other in images) else range(processes.world_size)
    device = batches[0][0].device
    result: list[Batch] = []
    for source in sources:
        sent = processes.broadcast([x for x, _ in batches], device, source)
        labels = iter(processes.broadcast([y for _, y in batches if y is not None], device, source))
        labelled = processes.all_gather([y is not None for _, y in batches])[source]
        result += [(x, next(labels) if has else None) for x, has in zip(sent, labelled, strict=True)]
    return _of_one_shape(result)


def _of_one_shape(batches: list[Batch]) -> list[Batch]:
    shapes = {tuple(x.shape[1:]) for x, _ in batches}
    if len(shapes) > 1:
        raise InvalidInput(f"all images of the pruning set must have one shape, not {sorted(shapes)}")
    return batches


def _is_pair(x: Any, y: Any) -> bool:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    return x.is_floating_point() and not y.is_floating_point() and x.shape[:1] == y.shape[:1] != ()


def _checked(number: int, batch: Any) -> Batch:
    x, y = batch, None
    if isinstance(batch, (tuple, list)) and batch:
        x, y = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(x, Tensor):
        raise InvalidInput(f"batch {number} of data holds {type(x).__name__} where a tensor of images should be")
    if not x.is_floating_point():
        raise InvalidInput(f"batch {number} of data has images of {x.dtype}; convert them to floating point first")
    if x.dim() < 2:
        raise InvalidInput(f"batch {number} of data has shape {tuple(x.shape)}; images are (N, ...)")
    if not torch.isfinite(x).all():
        raise InvalidInput(f"batch {number} of data holds NaN or infinite values")
    if y is not None and (not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]):
        count = len(y) if isinstance(y, Tensor) and y.dim() else "no"
        raise InvalidInput(f"batch {number} of data has {len(x)} images and {count} labels")
    with torch.inference_mode(False):  # what was made in inference mode cannot take part in a gradient
        x = x.clone() if x.is_inference() else x.detach()
    return x, None if y is None else y.detach()


def fingerprint(tensor: Tensor) -> bytes:
    """A hash of a tensor's content: 20 bytes, equal for equal entries in equal order, whatever the device and shape."""
    flat = tensor.detach().cpu().reshape(-1).contiguous()
    return hashlib.sha1(flat.view(torch.uint8).numpy().tobytes(), usedforsecurity=False).digest()


def contents(images: Tensor, labels: Tensor | None) -> list[tuple[bytes, bytes]]:
    """Fingerprints of every image and of its label, which tells equal images apart."""
    of_labels = [b""] * len(images) if labels is None else [fingerprint(label) for label in labels.cpu()]
    return [(fingerprint(image), label) for image, label in zip(images.cpu(), of_labels, strict=True)]

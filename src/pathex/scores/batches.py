"""The pruning set as it is delivered: read once, checked, and joined over the processes that score together."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pathex.distributed import Processes
from pathex.errors import InvalidInput
from pathex.graph import Images, Inputs, arguments, each, tensors_in

Batch = tuple[Images, Tensor | None]
Keys = tuple[str | Sequence[str], str | None] | None
"""Names in dictionaries of what a network gets and of the labels, which may be None."""

_USUAL_INPUTS = ("pixel_values", "image", "images", "img", "inputs", "input", "x")
_USUAL_LABELS = dict.fromkeys(("labels", "label", "targets", "target", "y")).keys()
_ADVICE = (
    "a batch is (x, y), x or a dictionary, of tensors (N, ...); a data set of single images goes through a DataLoader, "
    "a network that takes lists of images (detection) inside a module that takes a tensor"
)


def read_batches(data: Any, model: nn.Module, keys: Keys = None) -> list[Batch]:
    """Read the pruning set once.

    Args:
        data: A DataLoader, an iterable of batches, one tensor ``x``, a pair of tensors ``(x, y)``, or a dictionary. A
            batch is ``(x, y)``, ``x``, or a dictionary; ``x`` a tensor, or for a network with several inputs a tuple or
            dictionary of tensors.
        model: The network; the names of its arguments tell apart what is in a dictionary.
        keys: Names, in dictionaries, of what the network gets and of the labels; None finds them.

    Returns:
        Batches ``(x, y)``; ``y`` is None without labels.

    Raises:
        InvalidInput: If there is no image, a batch is not made of tensors, images are not finite floating-point
            numbers of one shape, or labels do not match their images.
    """
    if isinstance(data, (Tensor, Mapping)):
        data = [data]
    elif isinstance(data, (tuple, list)) and len(data) == 2 and _is_batch(data):
        data = [tuple(data)]
    elif isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise InvalidInput(
            "data must be a DataLoader, an iterable of (x, y), x or dictionaries, or a tensor, not "
            f"{type(data).__name__}"
        )
    # A DataLoader draws from torch's global generator when it starts.
    with torch.random.fork_rng(devices=[]):
        batches = [_checked(f"batch {number} of data", batch, model, keys) for number, batch in enumerate(data)]
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
    given = [x.given if isinstance(x, Inputs) else x for x, _ in batches]
    shapes = {str(tree_map_only(Tensor, lambda tensor: tuple(tensor.shape[1:]), x)) for x in given}
    if len(shapes) > 1:
        raise InvalidInput(f"all images of the pruning set must have one shape, not [{', '.join(sorted(shapes))}]")
    return batches


def _is_batch(data: Sequence[Any]) -> bool:
    """Whether two things are a batch ``(x, y)`` and not two batches; a list is one of tensors only."""
    (x, y), parts = data, tensors_in(data[0])
    if not isinstance(y, Tensor) or not parts or not y.dim():
        return False
    if any(part.shape[:1] != y.shape[:1] for part in parts):
        return False
    if isinstance(data, tuple) and (not isinstance(x, Tensor) or y.shape[1:] != x.shape[1:]):
        return True
    return isinstance(x, Tensor) and x.is_floating_point() and not y.is_floating_point()


def _checked(where: str, batch: Any, model: nn.Module, keys: Keys) -> Batch:
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        named = batch._asdict()
        batch = named if keys or _USUAL_LABELS & named.keys() else tuple(batch)
    if isinstance(batch, Mapping):
        batch = _by_name(where, batch, model, keys)
    x, y = batch, None
    if isinstance(batch, (tuple, list)) and batch:
        x, y = batch[0], batch[1] if len(batch) > 1 else None
    if isinstance(x, Mapping):
        # In one order: batches are joined tensor by tensor.
        x = Inputs((), {name: x[name] for name in sorted(x, key=str) if isinstance(x[name], Tensor)})
    elif isinstance(x, (tuple, list)):
        x = Inputs(tuple(x))
    if isinstance(y, (Mapping, list, tuple)):
        raise InvalidInput(f"{where} has no labels but {_described(y)}; {_ADVICE}")
    _check_images(where, x, model, y)
    if y is not None and not (isinstance(y, Tensor) and y.dim()):
        raise InvalidInput(f"{where} has {len(x)} images and no labels but {_described(y)}; {_ADVICE}")
    if y is not None and len(y) != len(x):
        raise InvalidInput(f"{where} has {len(x)} images and {len(y)} labels")
    return each(x, _plain, floating=False), None if y is None else _plain(y)


def _check_images(where: str, x: Any, model: nn.Module, y: Any) -> None:
    """Refuse what is no batch of images."""
    tensors = tensors_in(x)
    if not tensors:
        raise InvalidInput(f"{where} holds {_described(x)} where a tensor of images should be; {_ADVICE}")
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not floating:
        raise InvalidInput(f"{where} has images of {tensors[0].dtype}; scale them as in training (x.float() / 255)")
    first = next((m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    plain = x if isinstance(x, Tensor) else floating[0]
    alone = first is not None and plain.dim() == first.weight.dim() - 1 and plain.shape[0] == first.in_channels
    if plain.dim() < 2 or (alone and (y is None or getattr(y, "shape", (0,))[:1] != plain.shape[:1])):
        raise InvalidInput(
            f"{where} has shape {tuple(plain.shape)}; images are (N, ...): add a batch dimension, x.unsqueeze(0)"
        )
    if len({tensor.shape[:1] for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise InvalidInput(f"{where} has inputs of shapes {shapes}, which are not of one number of images")
    if not all(torch.isfinite(tensor).all() for tensor in floating):
        raise InvalidInput(f"{where} holds NaN or infinite values")


def _by_name(where: str, batch: Mapping[Any, Any], model: nn.Module, keys: Keys) -> tuple[Any, Any]:
    """What the network gets of a dictionary, and the labels: by given names, those of its arguments, or usual ones."""
    known = f"{where} is a dictionary of {', '.join(map(repr, batch))}"
    if keys is not None:
        if isinstance(keys, str) or len(keys) != 2:
            raise InvalidInput(f"keys must be names of what the network gets and of the labels, not {keys!r}")
        names: list[Any] = [*keys[0]] if isinstance(keys[0], (list, tuple)) else [keys[0]]
        label = keys[1]
        if missing := [name for name in (*names, label) if name is not None and name not in batch]:
            raise InvalidInput(f"{known}; keys names {missing[0]!r}, which is not there")
    else:
        label = next((name for name in _USUAL_LABELS if name in batch), None)
        taken = signature(model.forward).parameters
        names = [name for name, value in batch.items() if name in taken and isinstance(value, Tensor)]
        # Labels go in where the network cannot do without them.
        names = next((n for n in ([n for n in names if n != label], names) if n and not unbound(model, n)), [])
        names = names or [name for name in _USUAL_INPUTS if name in batch][:1]
    if not names:
        raise InvalidInput(f"{known}; name what the network gets and the labels with keys=, ('image', 'label') for one")
    x = batch[names[0]] if len(names) == 1 else {name: batch[name] for name in names}
    return x, None if label is None else batch[label]


def unbound(model: nn.Module, names: Sequence[str] = (), count: int = 0) -> str:
    """Why the forward pass of a network cannot be called with ``count`` inputs and others by name; empty if it can."""
    try:
        signature(model.forward).bind(*range(count), **dict.fromkeys(names))
    except TypeError as error:
        return str(error)
    return ""


def check_arguments(model: nn.Module, x: Images) -> None:
    """Refuse inputs that are not those of the forward pass of a network."""
    args, kwargs = arguments(x)
    if why := unbound(model, [*kwargs], len(args)):
        raise InvalidInput(
            f"{type(model).__name__}.forward{signature(model.forward)} does not take what data delivers ({why}): "
            "deliver ((x1, x2), y), or a dictionary by the names of its arguments"
        )


def _plain(tensor: Tensor) -> Tensor:
    """A tensor without a history, of no subclass, that may take part in a gradient."""
    with torch.inference_mode(False):
        tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
        return tensor.as_subclass(Tensor)


def _described(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def fingerprint(tensor: Tensor) -> bytes:
    """A hash of a tensor's content: 20 bytes, equal for equal entries in equal order, whatever the device and shape."""
    flat = tensor.detach().cpu().reshape(-1).contiguous()
    return hashlib.sha1(flat.view(torch.uint8).numpy().tobytes(), usedforsecurity=False).digest()


def contents(images: Images, labels: Tensor | None) -> list[tuple[bytes, bytes]]:
    """Fingerprints of every image and of its label, which tells equal images apart."""
    of_images = [b"".join(map(fingerprint, parts)) for parts in zip(*map(Tensor.cpu, tensors_in(images)), strict=True)]
    of_labels = [b""] * len(images) if labels is None else [fingerprint(label) for label in labels.cpu()]
    return list(zip(of_images, of_labels, strict=True))

"""What ``weights=`` may name besides the tags of a library: a file, and which checkpoint it is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from pathex.errors import InvalidInput, UnknownName
from pathex.models._encoders import timm_network
from pathex.models._weights import read_file, tensors_of

__all__ = ["Stored", "is_file", "read_source", "split_source"]

_FILE_ENDINGS = frozenset({".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".tar"})


class Stored(NamedTuple):
    """Tensors of a file.

    Attributes:
        tensors: Those of the network, by the names they have in it.
        left_out: Names of the others, which the checkpoint holds beside the network.
    """

    tensors: dict[str, Tensor]
    left_out: list[str]


def is_file(weights: str) -> bool:
    """Whether a text names a file of weights, there or not, rather than a tag.

    Args:
        weights: A path, a path with the kind of checkpoint before it, or a tag.

    Returns:
        True for existing files and for texts that look like one.
    """
    path = Path(weights).expanduser()
    kind, colon, _ = weights.partition(":")
    return path.is_file() or path.suffix in _FILE_ENDINGS or len(path.parts) > 1 or (colon == ":" and kind in _KINDS)


def split_source(weights: str) -> tuple[str, Path]:
    """Kind of checkpoint and path.

    Args:
        weights: ``PATH``, ``mocov2:PATH``, ``dino:PATH`` or ``clip:PATH``.

    Returns:
        The kind, ``""`` for a plain file, and the path.

    Raises:
        UnknownName: If the kind is not known.
    """
    kind, colon, rest = weights.partition(":")
    if not colon or (kind not in _KINDS and Path(weights).expanduser().is_file()):
        return "", Path(weights).expanduser()
    # One letter is the drive of a path.
    if kind not in _KINDS and kind.isalnum() and len(kind) > 1:
        raise UnknownName("kind of weights", kind, _KINDS)
    return (kind, Path(rest).expanduser()) if kind in _KINDS else ("", Path(weights).expanduser())


def read_source(weights: str, model: nn.Module) -> Stored:
    """Read the tensors that a file holds for a network.

    Args:
        weights: As in :func:`split_source`.
        model: The network that they are for.

    Returns:
        The tensors, and the names of what else the file holds. A file that cannot be read or is of another kind
        raises `pathex.errors.InvalidInput`.
    """
    kind, path = split_source(weights)
    content = read_file(path)
    return _KINDS[kind](content, path, model) if kind else Stored(tensors_of(content, path), [])


def _moco(content: object, path: Path, model: nn.Module) -> Stored:
    """MoCo v2: the query encoder without its projection head; not the momentum encoder and its queue."""
    tensors = tensors_of(content, path)
    inside = _below(tensors, "encoder_q.")
    if not inside:
        raise _wrong_kind(path, "MoCo v2 checkpoint", "encoder_q.*", tensors)
    return _without_rest(tensors, {name: key for name, key in inside.items() if not name.startswith("fc.")})


def _dino(content: object, path: Path, model: nn.Module) -> Stored:
    """DINO: the teacher's backbone without its projection head, or a file of the backbone alone."""
    if not isinstance(content, Mapping) or not isinstance(content.get("teacher"), Mapping):
        tensors = tensors_of(content, path)
        inside = _below(tensors, "backbone.")
        return _without_rest(tensors, inside) if inside else Stored(tensors, [])
    tensors = tensors_of(content["teacher"], path)
    inside = _below(tensors, "backbone.")
    if not inside:
        raise _wrong_kind(path, "DINO checkpoint", "teacher: backbone.*", tensors)
    found, rest = _without_rest(tensors, inside)
    student = tensors_of(content["student"], path) if isinstance(content.get("student"), Mapping) else {}
    return Stored(found, [*(f"teacher.{name}" for name in rest), *(f"student.{name}" for name in student)])


def _clip(content: object, path: Path, model: nn.Module) -> Stored:
    """CLIP: the visual tower of OpenAI's ResNets, converted by timm; not the text tower."""
    from timm.models.byobnet import ByobNet, checkpoint_filter_fn

    tensors = tensors_of(content, path)
    if "visual.layer1.0.conv1.weight" not in tensors:
        raise _wrong_kind(path, "CLIP ResNet", "visual.layer1.0.conv1.weight", tensors)
    network = timm_network(model)
    if not isinstance(network, ByobNet):
        raise InvalidInput(
            f"weights file {str(path)!r} of a CLIP ResNet fits timm's CLIP ResNets only (timm:resnet50_clip,"
            f" timm:resnet50_clip_gap, ...; encoder tu-resnet50_clip), not {type(model).__name__}"
        )
    converted = checkpoint_filter_fn(dict(tensors), network)
    kept = {id(tensor) for tensor in converted.values()}
    return Stored(converted, [name for name, tensor in tensors.items() if id(tensor) not in kept])


_KINDS: Mapping[str, Callable[[object, Path, nn.Module], Stored]] = MappingProxyType(
    {"mocov2": _moco, "dino": _dino, "clip": _clip}
)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Names without a prefix, with the names that they have in the file."""
    return {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}


def _without_rest(tensors: Mapping[str, Tensor], chosen: Mapping[str, str]) -> Stored:
    taken = set(chosen.values())
    return Stored({name: tensors[key] for name, key in chosen.items()}, [name for name in tensors if name not in taken])


def _wrong_kind(path: Path, kind: str, needed: str, tensors: Mapping[str, Tensor]) -> InvalidInput:
    found = " ".join(", ".join(list(tensors)[:3]).split())
    return InvalidInput(f"weights file {str(path)!r} is no {kind}: it holds no {needed}, but {found}, ...")

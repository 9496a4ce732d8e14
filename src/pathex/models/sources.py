"""What ``weights=`` may name besides the tags of a library: a file, and which checkpoint it is."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from pathex.errors import InvalidInput, UnknownName
from pathex.masks import read_file, state_dict_in
from pathex.models.encoders import timm_network

_FILE_ENDINGS = frozenset({".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".tar"})


class Stored(NamedTuple):
    """Tensors of the network by the names they have in it, and the names of what else the file holds."""

    tensors: dict[str, Tensor]
    left_out: list[str]


def is_file(weights: str) -> bool:
    """Whether a text names a file of weights, there or not, rather than a tag."""
    path = Path(weights).expanduser()
    kind, colon, _ = weights.partition(":")
    return path.is_file() or path.suffix in _FILE_ENDINGS or len(path.parts) > 1 or (colon == ":" and kind in _KINDS)


def split_source(weights: str) -> tuple[str, Path]:
    """Kind of checkpoint, ``""`` for a plain file, and path of ``PATH`` or ``KIND:PATH``."""
    kind, colon, rest = weights.partition(":")
    if colon and kind in _KINDS:
        return kind, Path(rest).expanduser()
    path = Path(weights).expanduser()
    # One letter is the drive of a path.
    if colon and kind.isalnum() and len(kind) > 1 and not path.is_file():
        raise UnknownName("kind of weights", kind, _KINDS)
    return "", path


def read_source(weights: str, model: nn.Module) -> Stored:
    """The tensors that a file holds for a network; see :func:`split_source`."""
    kind, path = split_source(weights)
    content = read_file(path)
    return _KINDS[kind](content, path, model) if kind else Stored(state_dict_in(content, path), [])


def _moco(content: object, path: Path, model: nn.Module) -> Stored:
    """MoCo v2: the query encoder without its projection head; not the momentum encoder and its queue."""
    tensors = state_dict_in(content, path)
    encoder = _below(tensors, "encoder_q.")
    if not encoder:
        raise _wrong_kind(path, "MoCo v2 checkpoint", "encoder_q.*", tensors)
    backbone = {name: value for name, value in encoder.items() if not name.startswith("fc.")}
    return Stored(backbone, _without(tensors, (f"encoder_q.{name}" for name in backbone)))


def _dino(content: object, path: Path, model: nn.Module) -> Stored:
    """DINO: the teacher's backbone without its projection head, or a file of the backbone alone."""
    networks = content if isinstance(content, Mapping) else {}
    whole = isinstance(networks.get("teacher"), Mapping)
    teacher = state_dict_in(networks["teacher"] if whole else content, path)
    backbone = _below(teacher, "backbone.")
    if whole and not backbone:
        raise _wrong_kind(path, "DINO checkpoint", "teacher: backbone.*", teacher)
    if not backbone:
        return Stored(teacher, [])
    rest = _without(teacher, (f"backbone.{name}" for name in backbone))
    if not whole:
        return Stored(backbone, rest)
    student = state_dict_in(networks["student"], path) if isinstance(networks.get("student"), Mapping) else {}
    return Stored(backbone, [*(f"teacher.{name}" for name in rest), *(f"student.{name}" for name in student)])


def _clip(content: object, path: Path, model: nn.Module) -> Stored:
    """CLIP: the visual tower of OpenAI's ResNets, converted by timm; not the text tower."""
    from timm.models.byobnet import ByobNet, checkpoint_filter_fn

    tensors = state_dict_in(content, path)
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


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _without(tensors: Mapping[str, Tensor], names: Iterable[str]) -> list[str]:
    taken = set(names)
    return [name for name in tensors if name not in taken]


def _wrong_kind(path: Path, kind: str, needed: str, tensors: Mapping[str, Tensor]) -> InvalidInput:
    found = " ".join(", ".join(list(tensors)[:3]).split())
    return InvalidInput(f"weights file {str(path)!r} is no {kind}: it holds no {needed}, but {found}, ...")

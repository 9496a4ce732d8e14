"""Files of weights into networks: every tensor of both is accounted for before anything changes."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput, PathexWarning, UnknownName, listed
from pathex.files import read_file
from pathex.masks import codes, fitted, formats, own_module, state_dict_in
from pathex.models.heads import CLASSIFIERS, head_modules, is_inside, is_segmentation, place_in_encoder, timm_network
from pathex.models.networks import CifarResNet, from_stage_names

_FILE_ENDINGS = frozenset({".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".tar"})


@dataclass(frozen=True)
class WeightsReport:
    """What became of every tensor when weights were loaded.

    Attributes:
        source: Where the weights come from.
        loaded: Tensors of the network that were loaded.
        missing: Tensors of the network that stay as they were: of a head, or the counters of BatchNorm batches that
            old files lack. Together with ``loaded`` the whole network.
        unexpected: Tensors of the file that were left out on purpose: projection head, queue, second encoder, a
            classifier for other classes or for a network that has none.
        classes: Classes of the weights and of the network, if the classifier was left out because they differ.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    classes: tuple[int, int] | None = None

    def summary(self) -> str:
        """The report in one line."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        missing = _without_counters(self.missing)
        if missing:
            why = "not in the file"
            if self.classes is not None:
                why = f"the weights are for {self.classes[0]} classes, the model has {self.classes[1]}"
            parts.append(f"{listed(missing)} stay at their initialization ({why})")
        groups = Counter(name.partition(".")[0] for name in self.unexpected if name not in self.missing)
        if groups:
            parts.append(f"left out of the file: {listed([f'{name} ({count})' for name, count in groups.items()])}")
        return _in_one_line(f"weights {self.source!r}: {'; '.join(parts)}")


def load_weights(model: nn.Module, source: str | Path) -> WeightsReport:
    """Load a file of weights into a network, after every name and shape has been compared.

    Every tensor outside the head (see `head_parameters`) must be in the file; a network of
    segmentation-models-pytorch takes a whole network or the weights of a classifier for its encoder. What the file
    holds besides must be known: projection heads, queues and second encoders of self-supervised checkpoints, a
    classifier without a place. A `pathex.errors.PathexWarning` says if a classifier stays at its
    initialization, or if more than a classifier is left out of the file.

    Args:
        model: The network, changed in place, and only if everything fits.
        source: A safetensors or torch file, or ``mocov2:PATH``, ``dino:PATH``, ``clip:PATH``. Files of tensors only
            are read, never code.

    Returns:
        The report. If tensors are missing, unexpected or of another shape, `pathex.errors.InvalidInput` lists them.

    Examples:
        >>> import tempfile, torch, pathex
        >>> model = pathex.models.create("resnet20", width=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(model.state_dict(), f"{folder}/w.pt")
        ...     report = load_weights(model, f"{folder}/w.pt")
        >>> len(report.loaded), report.missing, report.unexpected
        (128, (), ())
    """
    model = own_module(model)
    stored = read_source(str(source), model)
    return fit(model, stored.tensors, source=str(source), left_out=stored.left_out)


def fit(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str, left_out: Iterable[str] = ()) -> WeightsReport:
    """Load tensors after every name and shape has been compared; ``left_out`` are those of the file not among them."""
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    tensors = fitted(tensors, own)
    given, dropped = _adapted(model, tensors)
    # Files of safetensors hold a tensor that layers share once.
    shared = {_place(own[name]): value for name, value in given.items() if name in own and own[name].data_ptr()}
    given = {name: shared[_place(tensor)] for name, tensor in own.items() if _place(tensor) in shared} | given
    unused = [*left_out, *dropped]
    differing = [name for name in own if name in given and own[name].shape != given[name].shape]
    _compare(model, own, given, differing, source)
    loaded = {name: given[name] for name in own if name in given and name not in differing}
    for name, value in loaded.items():
        if value.layout is not torch.strided or value.is_meta or (value.is_complex() and not own[name].is_complex()):
            raise InvalidInput(f"weights {source!r}: {name!r} is {value.layout}, {value.dtype} on {value.device}")
    # Not by the method of the model: segmentation networks warn and rename there.
    nn.Module.load_state_dict(model, loaded, strict=False)
    classes = (given[differing[0]].shape[0], own[differing[0]].shape[0]) if differing else None
    missing = tuple(name for name in own if name not in loaded)
    report = WeightsReport(source, tuple(loaded), missing, (*unused, *differing), classes)
    only_encoder = is_segmentation(model) and not any(name.startswith("encoder.") for name in tensors)
    notable = [name for name in unused if name.partition(".")[0] not in CLASSIFIERS]
    if notable or (_without_counters(missing) and not only_encoder):
        warnings.warn(report.summary(), PathexWarning, stacklevel=2)
    return report


def _adapted(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by their names in the network, and the names of those that its kind has no use for."""
    if isinstance(model, CifarResNet):
        return from_stage_names(model, tensors), []
    if is_segmentation(model) and not any(name.startswith("encoder.") for name in tensors):
        return place_in_encoder(model, tensors)
    return dict(tensors), []


def _compare(
    model: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor], differing: list[str], source: str
) -> None:
    """Raise unless only a head may stay as it is: all of it is not in the file, or its layer has other classes."""
    head = [name for name in own if is_inside(name, head_modules(model))]
    if any(name in given for name in head):
        # In a layer before the last this would be another width, and the next layer then differs in its inputs too.
        head = [name for name in head if name in differing and own[name].shape[1:] == given[name].shape[1:]]
    missing = [name for name in _without_counters(own) if name not in given and name not in head]
    unexpected = [name for name in given if name not in own]
    if missing or unexpected or set(differing) - set(head):
        shapes = [f"{name} ({_shape(given[name])}, model {_shape(own[name])})" for name in differing]
        parts = (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
        listing = "; ".join(f"{title}: {listed(entries)}" for title, entries in parts if entries)
        raise InvalidInput(_in_one_line(f"weights {source!r} do not fit {type(model).__name__}: {listing}"))


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    """Where the values of a tensor are."""
    return tensor.data_ptr(), tensor.shape


def _without_counters(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith("num_batches_tracked")]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _in_one_line(text: str) -> str:
    # Names come from the file: a damaged one may hold line breaks.
    return " ".join(text.split())


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
    """The tensors that a file holds for a network; see `split_source`."""
    kind, path = split_source(weights)
    content = read_file(path)
    if kind:
        return _KINDS[kind](content, path, model)
    tensors = state_dict_in(content, path)
    return Stored(formats.weights_from_sparse(tensors) if codes.TABLE in tensors else tensors, [])


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

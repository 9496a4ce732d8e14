"""Masks: which weights a ticket keeps, as an object that checks, reports, combines, compares and saves itself."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pathex import __version__
from pathex.errors import InvalidInput, MaskMismatch, listed, refusing
from pathex.files import SEAL, read_safetensors, write_safetensors
from pathex.masks.wrappers import own_module

_SCHEMA = 1


class Count(NamedTuple):
    """Kept weights and all weights of one tensor."""

    kept: int
    total: int


class Mask(Mapping[str, Tensor]):
    """A mapping from parameter names to bool tensors on the CPU, True = kept.

    Masks combine with ``&``, ``|`` and ``-`` (kept here and not there) and compare with ``==``, `jaccard` and
    `jaccard_by_layer`.

    Args:
        entries: Name to bool tensor in the shape of the parameter; the tensors are copied.
        metadata: What produced the mask (method, options, seed, ...), JSON-serialisable; kept by `save`.

    Raises:
        MaskMismatch: If there is no entry or one is not a bool tensor.

    Examples:
        >>> mask = Mask({"fc.weight": torch.tensor([[True, False], [False, False]])})
        >>> mask.sparsity, mask.counts()["fc.weight"]
        (0.75, Count(kept=1, total=4))
    """

    def __init__(self, entries: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
        if not any(not isinstance(entry, Tensor) or entry.numel() for entry in entries.values()):
            raise MaskMismatch("a mask needs at least one entry with a weight")
        for name, entry in entries.items():
            if not isinstance(entry, Tensor) or entry.dtype != torch.bool:
                kind = entry.dtype if isinstance(entry, Tensor) else type(entry).__name__
                raise MaskMismatch(f"mask entry {name!r} must be a bool tensor, not {kind}")
        self._entries = {name: entry.detach().cpu().clone() for name, entry in entries.items()}
        self.metadata = dict(metadata or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Mask({self.kept:,} of {self.total:,} weights in {len(self)} tensors, sparsity {self.sparsity:.4f})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]

    def counts(self) -> dict[str, Count]:
        """Name of every tensor to its `Count`, a tuple ``(kept, total)``."""
        return {name: Count(int(entry.count_nonzero()), entry.numel()) for name, entry in self.items()}

    @property
    def kept(self) -> int:
        """Number of kept weights."""
        return sum(int(entry.count_nonzero()) for entry in self.values())

    @property
    def total(self) -> int:
        """Number of weights, kept or not."""
        return sum(entry.numel() for entry in self.values())

    @property
    def density(self) -> float:
        """Fraction kept."""
        return self.kept / self.total

    @property
    def sparsity(self) -> float:
        """Fraction removed."""
        return 1 - self.density

    def summary(self) -> str:
        """A table of the tensors with shape, kept, total and density, as lines of text."""
        counts = [(name, "x".join(map(str, self[name].shape)), *count) for name, count in self.counts().items()]
        counts.append(("total", "", self.kept, self.total))
        rows = [
            (n, shape, f"{kept:,}", f"{total:,}", f"{kept / max(total, 1):.4f}") for n, shape, kept, total in counts
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            f"{n:<{widths[0]}}  {s:<{widths[1]}}  {k:>{widths[2]}} of {t:>{widths[3]}}  density {d}"
            for n, s, k, t, d in rows
        )

    def _combined(self, other: "Mask", how: Callable[[Tensor, Tensor], Tensor]) -> "Mask":
        self._check_same(other)
        return Mask({name: how(entry, other[name]) for name, entry in self.items()})

    def __and__(self, other: "Mask") -> "Mask":
        return self._combined(other, torch.logical_and)

    def __or__(self, other: "Mask") -> "Mask":
        return self._combined(other, torch.logical_or)

    def __sub__(self, other: "Mask") -> "Mask":
        return self._combined(other, lambda a, b: a & ~b)

    def jaccard_by_layer(self, other: "Mask") -> dict[str, float]:
        """Overlap with a mask over the same tensors: name to intersection over union, 1 where both are empty."""
        self._check_same(other)
        return {name: Mask({name: entry}).jaccard(Mask({name: other[name]})) for name, entry in self.items()}

    def jaccard(self, other: "Mask") -> float:
        """Intersection over union of the kept weights of all tensors together; 1 if both masks keep nothing."""
        either = (self | other).kept
        return (self & other).kept / either if either else 1.0

    def _check_same(self, other: "Mask") -> None:
        _refuse("the masks are over different tensors", self, {name: entry.shape for name, entry in other.items()})

    def check(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Raise `MaskMismatch`, which lists them, if entries do not fit the parameters of a model or a state dict."""
        tensors = dict(own_module(model).named_parameters()) if isinstance(model, nn.Module) else model
        masked = {name: tensor.shape for name, tensor in tensors.items() if name in self}
        what = type(model).__name__ if isinstance(model, nn.Module) else "the tensors"
        _refuse(f"the mask does not fit {what}", self, masked)

    def save(self, path: str | os.PathLike[str], **metadata: Any) -> None:
        """Write the mask as safetensors: packed bits, and JSON metadata in the header. The write is atomic.

        Raises:
            InvalidInput: If the metadata, the mask's own and these, are no JSON, or the file cannot be written.
        """
        path = Path(path)
        bits = {name: torch.from_numpy(np.packbits(entry.numpy(), axis=None)) for name, entry in self.items()}
        header = {
            "schema": _SCHEMA,
            "sha256": SEAL,
            "pathex_version": __version__,
            "sparsity": self.sparsity,
            "shapes": {name: list(entry.shape) for name, entry in self.items()},
            "metadata": {**self.metadata, **metadata},
        }
        with refusing("the metadata of a mask must be JSON-serialisable: {}", TypeError, ValueError):
            text = json.dumps(header)
        with refusing(f"cannot write the mask file {path}: {{}}", OSError):
            write_safetensors(path, bits, {"pathex_mask": text})

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> "Mask":
        """Read a mask that `save` wrote, with its metadata, and check it against a model if there is one.

        Returns:
            The mask.

        Raises:
            MaskMismatch: If the file is missing, is no mask, is damaged, has another schema or does not fit.
        """
        path = Path(path)
        if not path.is_file():
            raise MaskMismatch(f"no mask file at {path}")
        with refusing("{}", InvalidInput, raising=MaskMismatch):
            bits, header = read_safetensors(path, "pathex_mask")
        if not isinstance(header, dict):
            raise MaskMismatch(f"{path} holds tensors but no pathex mask")
        if header.get("schema") != _SCHEMA:
            raise MaskMismatch(f"{path} has mask schema {header.get('schema')!r}; this version reads {_SCHEMA}")
        try:
            entries = _unpacked(path, header["shapes"], bits)
            mask = cls(entries, header["metadata"])
        except MaskMismatch:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise MaskMismatch(f"{path} is damaged: its header cannot be read ({type(error).__name__})") from error
        if model is not None:
            mask.check(model)
        return mask


def all_kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a mask that keeps everything: for each name a bool tensor of ones in its shape, on the CPU."""
    return {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in tensors.items()}


def _unpacked(path: Path, shapes: Mapping[str, list[int]], bits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if set(shapes) != set(bits):
        raise MaskMismatch(f"{path} is damaged: header and tensors differ in {sorted(set(shapes) ^ set(bits))}")
    entries = {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        if bits[name].dtype != torch.uint8 or bits[name].numel() != -(-count // 8):
            raise MaskMismatch(f"{path} is damaged: {name!r} holds {bits[name].numel()} bytes for shape {shape}")
        unpacked = np.unpackbits(bits[name].numpy(), count=count).astype(bool)
        entries[name] = torch.from_numpy(unpacked).reshape(shape)
    return entries


def _refuse(what: str, mask: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raise `MaskMismatch` if tensors of these shapes are not those of the mask."""
    found = [f"{name!r} is missing" for name in shapes if name not in mask]
    found += [f"{name!r} is not there" for name in mask if name not in shapes]
    found += [
        f"{name!r} has shape {tuple(entry.shape)} in the mask and {tuple(shapes[name])} there"
        for name, entry in mask.items()
        if name in shapes and entry.shape != shapes[name]
    ]
    if found:
        raise MaskMismatch(f"{what}: {listed(found)}")

"""Files that hold a mask in some form: read whatever form they have, write the form that is asked for."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from safetensors.torch import save
from torch import Tensor, nn

from pathex.errors import InvalidInput, MaskMismatch, PathexWarning, check_name, refusing
from pathex.files import metadata_of, write_bytes, write_torch
from pathex.masks import codes, formats
from pathex.masks.mask import Mask
from pathex.masks.prunable import Selectors
from pathex.masks.tensors import read_weights

__all__ = [
    "ENDINGS",
    "FORMATS",
    "bytes_on_disk",
    "check_format",
    "read_mask",
    "weights_beside",
    "write_mask",
    "write_tensors",
]

FORMATS = ("pathex", "tensors", "torch-prune", "sparse", "zeros")
"""What `write_mask` writes; all but the first two hold weights too."""

_SAFETENSORS = ".safetensors"
ENDINGS = (_SAFETENSORS, ".pt", ".pth", ".bin")
"""Of the files that `read_mask` reads."""


def read_mask(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, ignore: Selectors = (), prunable: Selectors = ()
) -> Mask:
    """Read a mask from a file of any form that pathex knows; no code in it is run.

    A safetensors or ``.npz`` file, or one of ``torch.save`` with a state dict, maybe below ``state_dict``, ``masks`` or
    other keys, of dense or sparse tensors. It holds: a mask of `Mask.save`; tensors of 0 and 1; what
    ``torch.nn.utils.prune`` leaves (``weight_orig``, ``weight_mask``), or ``weight_mask`` beside ``weight``; ``sparse``
    weights of `write_mask`; or weights, whose zeros are the mask.

    Args:
        path: The file.
        model: The model that the mask is for. With it the mask is over exactly its prunable weights, and what the file
            does not name is dense, as is, with a warning, what it prunes and the model does not (biases, BatchNorm);
            without it over what the file holds.
        ignore: As in `pathex.prune`.
        prunable: As in `pathex.prune`.

    Returns:
        The mask. Weights without a zero are worth a warning; what cannot be read raises `pathex.errors.InvalidInput`.

    Raises:
        MaskMismatch: If there is no file, or it does not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise MaskMismatch(f"no mask file at {path}")
    if "pathex_mask" in metadata_of(path):
        mask = Mask.load(path)
    else:
        tensors = read_weights(path, "masks")
        form = _form(tensors)
        if form == "zeros":
            mask = formats.from_zeros(tensors, model, ignore=ignore, prunable=prunable)
            if mask.kept == mask.total:
                warnings.warn(f"no weight in {path} is zero: the mask keeps everything", PathexWarning, stacklevel=2)
            return mask
        mask = _FORMS[form][0](tensors)
    return mask if model is None else formats.complete(mask, model, ignore=ignore, prunable=prunable)


_FORMS: Mapping[str, tuple[Callable[..., Mask], Callable[..., dict[str, Tensor]]]] = MappingProxyType(
    {
        "tensors": (formats.from_tensors, lambda mask, weights: formats.to_tensors(mask)),
        "torch-prune": (formats.from_torch_prune, formats.to_torch_prune),
        "sparse": (formats.from_sparse, formats.to_sparse),
        "zeros": (formats.from_zeros, formats.to_zeros),
    }
)


def write_mask(
    mask: Mask, path: str | os.PathLike[str], form: str = "pathex", weights: formats.Weights | None = None
) -> None:
    """Write a mask in one of the forms of `FORMATS`. The write is atomic.

    Args:
        mask: The mask.
        path: The file: safetensors, or for other forms than ``pathex`` also ``.pt``, ``.pth`` or ``.bin`` of
            ``torch.save``.
        form: ``pathex`` (see `Mask.save`), ``tensors`` (bool tensors by name), ``torch-prune`` (state dict with
            ``weight_orig`` and ``weight_mask``), ``sparse`` (kept weights and the mask in a code, the smallest),
            ``zeros`` (weights with zeros). An unknown one, or another ending of the file, raises
            `pathex.errors.InvalidInput`.
        weights: A model, or names with tensors; the last three forms need them.

    Raises:
        InvalidInput: If weights are missing or the file cannot be written.
    """
    path = Path(path)
    check_format(form, path)
    if form == "pathex":
        mask.save(path)
        return
    if form != "tensors" and weights is None:
        raise InvalidInput(f"the mask format {form!r} needs weights= (--weights FILE); 'pathex' and 'tensors' do not")
    write_tensors(_FORMS[form][1](mask, weights), path)


def write_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write tensors by name, safetensors or ``torch.save`` by the ending, in one step; `InvalidInput` if that fails."""
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InvalidInput(f"{str(path)!r} must end in one of {', '.join(ENDINGS)}")
    # torch reports a missing folder as a RuntimeError.
    with refusing(f"cannot write {str(path)!r}: {{}}", OSError, RuntimeError):
        if path.suffix == _SAFETENSORS:
            write_bytes(path, _safetensors(tensors))
        else:
            write_torch(path, dict(tensors))


def bytes_on_disk(weights: formats.Weights, mask: Mask | None = None) -> int:
    """Bytes of a safetensors file of weights, with a mask in the form ``sparse``; `MaskMismatch` if it does not fit."""
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return len(_safetensors(tensors if mask is None else formats.to_sparse(mask, weights)))


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    written: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    return written


def check_format(form: str, path: str | os.PathLike[str]) -> None:
    """Refuse an unknown form (`UnknownName`), and a file whose ending the form does not allow."""
    check_name("mask format", form, FORMATS)
    endings = (_SAFETENSORS,) if form == "pathex" else ENDINGS
    if Path(path).suffix not in endings:
        raise InvalidInput(f"{str(path)!r} must end in one of {', '.join(endings)}")


def weights_beside(path: str | os.PathLike[str]) -> dict[str, Tensor] | None:
    """The weights in a file that `read_mask` reads, by name; None if the file holds a mask only."""
    path = Path(path)
    if "pathex_mask" in metadata_of(path):
        return None
    tensors = read_weights(path)
    form = _form(tensors)
    if form == "torch-prune":
        weights = formats.masked_tensors(tensors)
        own = {weight: name for name, weight in weights.items()}
        masks = {f"{name}_mask" for name in weights}
        return {own.get(name, name): tensor for name, tensor in tensors.items() if name not in masks}
    if form == "sparse":
        return formats.weights_from_sparse(tensors)
    return tensors if form == "zeros" else None


def _form(tensors: Mapping[str, Tensor]) -> str:
    if codes.TABLE in tensors:
        return "sparse"
    if formats.masked_tensors(tensors):
        return "torch-prune"
    binary = all(bool(((tensor == 0) | (tensor == 1)).all()) for tensor in tensors.values())
    return "tensors" if binary else "zeros"

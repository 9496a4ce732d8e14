"""Masks in the forms of other programs, as dictionaries of tensors.

Every ``from_...`` makes a `Mask`, every ``to_...`` the tensors that the other program reads. What does not fit raises
`pathex.errors.MaskMismatch`, which names it. Files are read and written by `pathex.masks.files`.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pathex.errors import InvalidInput, MaskMismatch, PathexWarning, listed
from pathex.masks import codes
from pathex.masks.mask import Mask, all_kept
from pathex.masks.prunable import Selectors, prunable_weights
from pathex.masks.wrappers import first_names, fitted, own_module

__all__ = [
    "apply_torch_prune",
    "complete",
    "from_sparse",
    "from_tensors",
    "from_torch_prune",
    "from_zeros",
    "to_sparse",
    "to_tensors",
    "to_torch_prune",
    "to_zeros",
    "weights_from_sparse",
]

Weights = nn.Module | Mapping[str, Tensor]
"""A model, or names with tensors (a state dict)."""


def from_tensors(tensors: Mapping[str, Tensor]) -> Mask:
    """A mask from tensors by name that hold 0 and 1 only, in any dtype; other values raise `MaskMismatch`."""
    return Mask({name: _binary(name, tensor) for name, tensor in tensors.items()})


def to_tensors(mask: Mask, dtype: torch.dtype = torch.bool) -> dict[str, Tensor]:
    """A mask as tensors by name, 1 or True = kept."""
    return {name: entry.to(dtype, copy=True) for name, entry in mask.items()}


def _binary(name: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise MaskMismatch(f"mask entry {name!r} must be a tensor, not {type(tensor).__name__}")
    wrong = tensor[(tensor != 0) & (tensor != 1)]
    if wrong.numel():
        raise MaskMismatch(f"mask entry {name!r} holds {wrong.flatten()[0].item()}; allowed: 0 and 1")
    return tensor != 0


def from_zeros(
    weights: Weights, model: nn.Module | None = None, *, ignore: Selectors = (), prunable: Selectors = ()
) -> Mask:
    """The mask of weights that are sparse already: what is zero is removed.

    Args:
        weights: A model, or names with tensors.
        model: The model whose prunable weights count. None: those of ``weights`` if that is a model, else every
            floating-point tensor of two or more dimensions.
        ignore: As in `pathex.prune`.
        prunable: As in `pathex.prune`.

    Returns:
        The mask. A tensor that is zero throughout is named in a warning: that may be how it was initialised.

    Raises:
        MaskMismatch: If a prunable weight is missing or has another shape, or there is no tensor that counts.
    """
    tensors = _tensors(weights)
    model = weights if model is None and isinstance(weights, nn.Module) else model
    if model is None:
        names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dim() > 1]
        if not names:
            raise MaskMismatch("no floating-point tensor has two or more dimensions: there is no mask")
    else:
        model = own_module(model)
        names = list(prunable_weights(model, ignore=ignore, prunable=prunable))
        tensors = fitted(tensors, first_names(model))
        if missing := [name for name in names if name not in tensors]:
            raise MaskMismatch(f"the weights do not fit {type(model).__name__}: they lack {listed(missing)}")
    mask = Mask({name: tensors[name].detach() != 0 for name in names})
    if model is not None:
        mask.check(model)
    if empty := [name for name, count in mask.counts().items() if not count.kept]:
        warnings.warn(f"{listed(empty)}: zero throughout, and so removed as a whole", PathexWarning, stacklevel=2)
    return mask


def to_zeros(mask: Mask, weights: Weights) -> dict[str, Tensor]:
    """Weights with zeros where the mask removes.

    Returns:
        All tensors of ``weights``, copied. A mask that does not fit raises `MaskMismatch`.

    Raises:
        InvalidInput: If a kept weight is zero, so that the zeros would not be the mask.
    """
    tensors, entries = _tensors_and_entries(mask, weights)
    for name, entry in entries.items():
        if zeros := int((tensors[name][entry] == 0).sum()):
            raise InvalidInput(f"{zeros} kept weights of {name!r} are zero: zeros alone cannot tell them from removed")
        tensors[name][~entry] = 0
    return tensors


def from_torch_prune(pruned: Weights) -> Mask:
    """The mask of a model pruned with ``torch.nn.utils.prune`` or by buffers ``weight_mask``, or of its state dict.

    Returns:
        The mask over the pruned tensors, by the names that they have after ``torch.nn.utils.prune.remove``. Others
        are dense; `complete` adds them.

    Raises:
        MaskMismatch: If nothing is pruned, or a mask does not fit its tensor or holds other values than 0 and 1.
    """
    tensors = _tensors(pruned)
    weights = masked_tensors(tensors)
    if not weights:
        raise MaskMismatch("no tensor NAME_mask stands beside a NAME_orig or NAME: nothing is pruned")
    # A model may use one weight under several names; a mask has the first.
    first = first_names(own_module(pruned)) if isinstance(pruned, nn.Module) else {}
    entries: dict[str, Tensor] = {}
    for name, weight in weights.items():
        entry = _binary(name, tensors[f"{name}_mask"])
        if entry.shape != tensors[weight].shape:
            raise MaskMismatch(
                f"'{name}_mask' has shape {tuple(entry.shape)} and {weight!r} has {tuple(tensors[weight].shape)}"
            )
        own = first.get(weight, name).removesuffix("_orig")
        if not torch.equal(entries.setdefault(own, entry), entry):
            raise MaskMismatch(f"{own!r} and {name!r} are one weight and have different masks")
    return Mask(entries)


def masked_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names beside whose tensor stands a ``NAME_mask``, and the tensor's own: ``NAME_orig``, or else ``NAME``."""
    names = [name.removesuffix("_mask") for name in tensors if name.endswith("_mask")]
    found = {name: f"{name}_orig" if f"{name}_orig" in tensors else name for name in names}
    return {name: weight for name, weight in found.items() if weight in tensors}


def to_torch_prune(mask: Mask, weights: Weights) -> dict[str, Tensor]:
    """The state dict of a model pruned with ``torch.nn.utils.prune``.

    Returns:
        The tensors of ``weights``, copied; a masked ``NAME`` becomes ``NAME_orig`` (with its removed weights) and
        ``NAME_mask`` (0 and 1 in its dtype). A mask that does not fit raises `MaskMismatch`.
    """
    tensors, entries = _tensors_and_entries(mask, weights)
    for name, entry in entries.items():
        weight = tensors.pop(name)
        tensors[f"{name}_orig"] = weight
        tensors[f"{name}_mask"] = entry.to(weight.dtype)
    return tensors


def apply_torch_prune(model: nn.Module, mask: Mask) -> nn.Module:
    """Prune a model in place with ``torch.nn.utils.prune.custom_from_mask``, for programs that expect it.

    Returns:
        The same model. A mask that does not fit raises `MaskMismatch`, and nothing has changed.
    """
    own = own_module(model)
    mask.check(own)
    for name, entry in _under_every_name(mask, own).items():
        path, _, leaf = name.rpartition(".")
        module = own.get_submodule(path)
        weight = dict(module.named_parameters(recurse=False)).get(leaf)
        if weight is not None:  # a module that is there twice is pruned at its first name
            torch_prune.custom_from_mask(module, leaf, entry.to(weight.device))
    return model


def to_sparse(mask: Mask, weights: Weights) -> dict[str, Tensor]:
    """Weights in the fewest bytes: of a masked tensor its kept weights in C order, under its own name.

    Returns:
        The tensors of ``weights``, copied, the masked ones as (K,), and two tensors that hold the mask, exact also
        where a kept weight is zero. A mask that does not fit raises `MaskMismatch`.
    """
    tensors, entries = _tensors_and_entries(mask, weights)
    return tensors | {name: tensors[name][entry] for name, entry in entries.items()} | codes.pack(entries)


def from_sparse(tensors: Mapping[str, Tensor]) -> Mask:
    """The mask of what `to_sparse` returned; `MaskMismatch` if parts are missing, damaged or do not fit each other."""
    entries, _ = codes.unpack(tensors)
    for name, entry in entries.items():
        kept, found = int(entry.count_nonzero()), tensors.get(name)
        if found is None or found.shape != (kept,):
            what = "is not there" if found is None else f"has shape {tuple(found.shape)}"
            raise MaskMismatch(f"{name!r} {what}; the mask keeps {kept} of its weights")
    return Mask(entries)


def weights_from_sparse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense weights, with zeros, of what `to_sparse` returned, and all other tensors; errors as of `from_sparse`."""
    dense = {name: tensor for name, tensor in tensors.items() if name not in (codes.CODES, codes.TABLE)}
    return dense | {name: _scattered(tensors[name], entry) for name, entry in from_sparse(tensors).items()}


def _scattered(values: Tensor, entry: Tensor) -> Tensor:
    dense = values.new_zeros(entry.shape)
    dense[entry.to(values.device)] = values
    return dense


def complete(mask: Mask, model: nn.Module, *, ignore: Selectors = (), prunable: Selectors = ()) -> Mask:
    """A mask over exactly the prunable weights of a model, as `pathex.prune` starts from: what was not named is dense.

    Returns:
        The mask, with its metadata. A warning names what it removes and the model does not prune: that stays dense.

    Raises:
        MaskMismatch: If the mask does not fit the model.
    """
    model = own_module(model)
    weights = prunable_weights(model, ignore=ignore, prunable=prunable)
    first = first_names(model)
    mask = Mask(fitted(mask, first), mask.metadata)
    mask.check(dict(model.named_parameters(remove_duplicate=False)))
    entries = all_kept(weights)
    dense = []
    for name, entry in mask.items():
        if first[name] in entries:
            entries[first[name]] &= entry
        elif not entry.all():
            dense.append(name)
    if dense:
        message = f"the mask removes weights of {listed(dense)}, which are not prunable in this model and stay dense"
        warnings.warn(message, PathexWarning, stacklevel=2)
    return Mask(entries, mask.metadata)


def _tensors(weights: Weights) -> dict[str, Tensor]:
    tensors = own_module(weights).state_dict() if isinstance(weights, nn.Module) else weights
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def _under_every_name(mask: Mask, model: nn.Module) -> dict[str, Tensor]:
    return {name: mask[first] for name, first in first_names(model).items() if first in mask}


def _tensors_and_entries(mask: Mask, weights: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of all tensors on the CPU, and the entries by the names of the tensors that they belong to."""
    model = own_module(weights) if isinstance(weights, nn.Module) else None
    mask.check(weights if model is None else model)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in _tensors(weights).items()}
    for name in mask:
        if name in tensors and not tensors[name].is_floating_point():
            raise InvalidInput(f"{name!r} of the weights is {tensors[name].dtype}, not floating point")
    return tensors, dict(mask) if model is None else _under_every_name(mask, model)

"""Masks: which weights a ticket keeps, the files that hold them, and models that keep to them."""

from pathex.files import read_file, replacing
from pathex.masks import codes, files, formats
from pathex.masks.attachment import Handle, attach, check_optimizers, make_permanent
from pathex.masks.files import (
    ENDINGS,
    bytes_on_disk,
    check_format,
    read_mask,
    weights_beside,
    write_mask,
    write_tensors,
)
from pathex.masks.formats import from_zeros
from pathex.masks.mask import Count, Mask, all_kept
from pathex.masks.prunable import Selector, asked_for, prunable_weights
from pathex.masks.tensors import read_weights, state_dict_in
from pathex.masks.wrappers import fitted, own_module

__all__ = [
    "ENDINGS",
    "Count",
    "Handle",
    "Mask",
    "Selector",
    "all_kept",
    "asked_for",
    "attach",
    "bytes_on_disk",
    "check_format",
    "check_optimizers",
    "codes",
    "files",
    "fitted",
    "formats",
    "from_zeros",
    "make_permanent",
    "own_module",
    "prunable_weights",
    "read_file",
    "read_mask",
    "read_weights",
    "replacing",
    "state_dict_in",
    "weights_beside",
    "write_mask",
    "write_tensors",
]

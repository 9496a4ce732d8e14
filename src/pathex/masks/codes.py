"""Masks in few bytes: packed bits, or the gaps between entries in the code of Golomb and Rice, whichever is shorter.

R. F. Rice, "Some practical universal noiseless coding techniques" (JPL 1979). Gaps of a mask without structure are
geometric, for which the code takes a few per cent more than the entropy.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathex.errors import InvalidInput, MaskMismatch, refusing
from pathex.files import check_claim, parse_json

CODES, TABLE = "pathex.codes", "pathex.table"
"""Names of the tensors that `pack` makes: the codes of all entries, and in JSON their names, shapes and lengths."""

_PACKED, _WIDEST = 255, 48
_MOST_TABLE = 2**25
_HEAD = 10  # bytes: width of the remainders or `_PACKED`, whether the gaps are between removed entries, their number


def encode(entry: Tensor) -> Tensor:
    """A bool tensor as bytes, uint8 (M,), without its shape."""
    bits = entry.cpu().numpy().reshape(-1)
    rare = int(bits.sum()) * 2 <= len(bits)
    places = np.flatnonzero(bits == rare)
    gaps = np.diff(places, prepend=-1) - 1
    # The best width is near the binary logarithm of the mean gap.
    near = int(np.log2(max(gaps.mean() if len(gaps) else 0, 1)))
    widths = range(max(0, near - 1), near + 2)
    width = min(widths, key=lambda width: int((gaps >> width).sum()) + len(gaps) * (1 + width))
    quotients = gaps >> width
    # All quotients come first, each as ones and a zero, then all remainders: both are read without a loop.
    unary = np.ones(int(quotients.sum()) + len(gaps), dtype=np.uint8)
    unary[(quotients + 1).cumsum() - 1] = 0
    remainders = (gaps[:, None] >> np.arange(width - 1, -1, -1)) & 1
    code = np.packbits(np.concatenate([unary, remainders.astype(np.uint8).reshape(-1)]))
    if len(code) >= -(-len(bits) // 8):
        width, code = _PACKED, np.packbits(bits)
    head = np.frombuffer(bytes([width, rare]) + len(places).to_bytes(_HEAD - 2, "little"), dtype=np.uint8)
    return torch.from_numpy(np.concatenate([head, code]))


def decode(code: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of a shape that `encode` wrote; `MaskMismatch` if the code is not one of such a tensor."""
    data, size = code.cpu().numpy(), math.prod(shape)
    if code.dtype != torch.uint8 or code.dim() != 1 or len(data) < _HEAD:
        raise MaskMismatch(f"a code of a mask is torch.uint8 of {_HEAD} bytes or more, not {code.dtype} {code.shape}")
    width, rare, count = int(data[0]), bool(data[1]), int.from_bytes(data[2:_HEAD].tobytes(), "little")
    bits = np.unpackbits(data[_HEAD:])
    if width == _PACKED:
        if len(bits) < size:
            raise MaskMismatch(f"a code of {len(bits)} bits for {size} entries: it is damaged")
        return torch.from_numpy(bits[:size].astype(bool)).view(shape)
    ends = np.flatnonzero(bits == 0)[:count]
    start = int(ends[-1]) + 1 if count and len(ends) == count else 0
    remainders = bits[start : start + count * width]
    if len(ends) < count or len(remainders) < count * width or width > _WIDEST:
        raise MaskMismatch(f"a code of {len(bits)} bits does not hold {count} places: it is damaged")
    quotients = np.diff(ends, prepend=-1) - 1
    low = remainders.reshape(count, width).astype(np.int64) @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))
    places = ((quotients << width) + low + 1).cumsum() - 1
    if count and not 0 <= places.min() <= places.max() < size:
        raise MaskMismatch(f"a code with an entry at {int(places[-1])} of {size}: it is damaged")
    found = np.full(size, not rare)
    found[places] = rare
    return torch.from_numpy(found).view(shape)


def pack(mask: Mapping[str, Tensor], **facts: Any) -> dict[str, Tensor]:
    """All entries of a mask, and plain facts, in two tensors of uint8."""
    codes = {name: encode(entry) for name, entry in mask.items()}
    rows = {name: [list(mask[name].shape), len(code)] for name, code in codes.items()}
    text = json.dumps({"entries": rows, "facts": facts}, separators=(",", ":")).encode()
    table = torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8)
    return {CODES: torch.cat([*codes.values()]), TABLE: table}


def unpack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Entries and facts of what `pack` made; `MaskMismatch` for what it did not."""
    if missing := [name for name in (CODES, TABLE) if name not in tensors]:
        raise MaskMismatch(f"no mask in codes of pathex: there is no tensor {missing[0]!r}")
    kinds = (zlib.error, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError)
    with refusing(f"{TABLE!r} is damaged ({{}})", *kinds, raising=MaskMismatch):
        text = zlib.decompressobj().decompress(tensors[TABLE].cpu().numpy().tobytes(), _MOST_TABLE)
        known = parse_json(text.decode())
        rows = {name: (tuple(map(int, shape)), int(length)) for name, (shape, length) in known["entries"].items()}
        parts = tensors[CODES].split([length for _, length in rows.values()])
        facts = dict(known["facts"])
        if any(size < 0 for shape, _ in rows.values() for size in shape):
            raise InvalidInput("it holds a negative size")
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        check_claim("it", sum(math.prod(shape) for shape, _ in rows.values()), size)
    return {name: decode(part, shape) for part, (name, (shape, _)) in zip(parts, rows.items(), strict=True)}, facts

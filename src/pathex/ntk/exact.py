"""The exact kernel by two algorithms: from rows of the Jacobian, and from products with it and its transpose."""

from collections.abc import Iterator
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from pathex.graph import Images
from pathex.ntk.network import Network

Form = Literal["full", "trace", "classes", "blocks"]
EQUATIONS = {"full": "akp,blp->akbl", "trace": "akp,bkp->ab", "classes": "akp,bkp->kab", "blocks": "akp,alp->akl"}
GROUP = 256  # of the Jacobian in a product; of one set of images only what lies below the diagonal is computed


def size_of(network: Network, form: Form, rows: int) -> tuple[int, ...]:
    """Shape of a kernel with some images in its rows."""
    sizes = {"a": rows, "b": network.images, "k": network.outputs, "l": network.outputs}
    return tuple(sizes[letter] for letter in EQUATIONS[form].partition("->")[2])


def width_of(network: Network) -> int:
    """Entries of parameters in a block: rows of that width take half of the memory."""
    return max(1, min(network.kept, network.memory // 2 // (network.images * network.outputs * network.dtype.itemsize)))


def blocks(network: Network) -> Iterator[list[tuple[str, Tensor]]]:
    """The kept entries of the parameters in blocks: names, and flat places."""
    block, left = [], width_of(network)
    for name in network.leaves:
        places = network.places(name)
        while len(places):
            block.append((name, places[:left]))
            left, places = left - len(block[-1][1]), places[left:]
            if not left:
                yield block
                block, left = [], width_of(network)
    if block:
        yield block


def rows_of(network: Network, block: list[tuple[str, Tensor]], part: Images) -> Iterator[Tensor]:
    """Rows of the Jacobian of a part, some at a time: ``(rows, entries of the block)``."""
    for rows in network.derivatives(part, [name for name, _ in block]):
        yield torch.cat([rows[name] if len(at) == rows[name].shape[1] else rows[name][:, at] for name, at in block], 1)


def by_jacobian(network: Network, form: Form, other: Network | None) -> Tensor:
    """The kernel in float64; of one set of images the part below the diagonal."""
    total = torch.zeros(size_of(network, form, (other or network).images), dtype=torch.float64)
    count, k, group = network.images, network.outputs, 1 if other else ceil(GROUP / network.outputs)
    # One place for all blocks: a new one would be made while the last is still there.
    memory = torch.empty(count * k * width_of(network), dtype=network.dtype, device=network.x.device)
    for block in blocks(network):
        width, done = sum(len(at) for _, at in block), 0
        rows = memory[: count * k * width].view(count * k, width)
        for found in (found for part in network.parts for found in rows_of(network, block, part)):
            rows[done : done + len(found)] = found
            done += len(found)
        right = rows.view(count, k, width)
        for first in range(0, other.images if other else count, group):
            left = right[first : first + group]
            if other:
                left = torch.cat([*rows_of(other, block, other.parts[first])]).view(1, k, width)
            below = right if other else right[: first + group]
            piece = torch.einsum(EQUATIONS[form], left, left if form == "blocks" else below).double().cpu()
            _place(total, form, slice(first, first + len(left)), slice(len(below))).add_(piece)
    return total


def _place(kernel: Tensor, form: Form, rows: slice, images: slice) -> Tensor:
    if form == "full":
        return kernel[rows, :, images]
    return kernel[rows] if form == "blocks" else kernel[..., rows, images]


def by_products(network: Network, form: Form, other: Network | None) -> Tensor:
    """The kernel in float64, column after column; nothing of the Jacobian is kept."""
    total = torch.zeros(size_of(network, form, (other or network).images), dtype=torch.float64)
    for number in range(network.images * network.outputs):
        image, output = divmod(number, network.outputs)
        place = slice(None) if network.coupled else slice(image, image + 1)
        picked = torch.zeros(network.images, network.outputs)
        picked[image, output] = 1
        column = (other or network).pushed(network.pulled(picked[place], network.x[place])).to(total)
        if form == "full":
            total[:, :, image, output] = column
        elif form == "blocks":
            total[image, :, output] = column[image]
        else:
            (total[output] if form == "classes" else total)[:, image] += column[:, output]
    return total


def matrix(kernel: Tensor, form: Form, *, mirror: bool) -> Tensor:
    """A full kernel as a matrix; what is above the diagonal from what is below, if it is not there."""
    kernel = kernel.flatten(2).flatten(0, 1) if form == "full" else kernel
    return kernel.tril() + kernel.tril(-1).mT if mirror and form != "blocks" else kernel

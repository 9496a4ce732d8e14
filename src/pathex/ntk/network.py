"""A masked network as a function of all its parameters, and its derivatives."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput, UnsupportedOperation, check_name, check_names, refusing
from pathex.graph import Images, Output, Tensors, compute_dtype, concatenated
from pathex.masks import Mask, own_module
from pathex.paths import Statistics, calibrate, footprint, forward
from pathex.scores import mib, parse_memory, read_batches

BatchNorm = Literal["stored", "calibrated", "batch"]
_ON_CPU = 2 * 2**30
_TOGETHER = 2**20  # entries of rows made together, beyond which their copies take longer than one row after another
_LARGEST = 6  # results of the largest function that a pass without gradient holds


@dataclass(frozen=True)
class Network:
    """The outputs of a masked network as a function of its parameters, which are zero where the mask removes.

    ``run`` takes images and tensors to outputs ``(images, outputs)``. ``coupled`` images meet in BatchNorm's
    statistics. ``shape`` is that of the outputs of an image, ``entries`` those of all results of its pass, and of the
    largest.
    """

    run: Callable[[Images, Tensors], Tensor]
    x: Images
    leaves: dict[str, Tensor]
    mask: dict[str, Tensor]
    batch_norm: BatchNorm
    memory: int
    coupled: bool
    shape: tuple[int, ...]
    entries: tuple[int, int]

    def __post_init__(self) -> None:
        size = self.pass_bytes(self.images)
        if self.coupled and (self.images < 2 or size > self.memory):
            raise InvalidInput(
                f"batch_norm='batch' couples {self.images} images, a pass of which takes about {mib(size)}; allowed: "
                f"two images or more that fit into memory={mib(self.memory)}, or 'calibrated'"
            )

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.x)

    @property
    def outputs(self) -> int:
        """Number of outputs of an image."""
        return prod(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the passes."""
        return next(iter(self.leaves.values())).dtype

    @cached_property
    def kept(self) -> int:
        """Number of entries of parameters that are kept."""
        return sum(int(self.mask[n].sum()) if n in self.mask else leaf.numel() for n, leaf in self.leaves.items())

    @property
    def parts(self) -> Sequence[Images]:
        """Images that do not depend on each other: one by one, or all together where they are coupled."""
        return [self.x] if self.coupled else self.x.split(1)

    @property
    def together(self) -> int:
        """Images of a pass within half of the memory, or all of them where they are coupled."""
        return self.images if self.coupled else max(1, self.memory // 2 // self.pass_bytes(1))

    def pass_bytes(self, images: int) -> int:
        """What a forward and backward pass of some images holds."""
        return 2 * images * self.entries[0] * self.dtype.itemsize

    @torch.no_grad()
    def values(self) -> Tensor:
        """The outputs of all images in float64, on the CPU: ``(images, outputs)``."""
        return torch.cat([self.run(x, self.leaves) for x in self.x.split(self.together)]).double().cpu()

    def row_entries(self, names: Iterable[str], images: int) -> int:
        """Entries of the derivatives of one output by some parameters, and of what is on the way there."""
        return sum(self.leaves[name].numel() for name in names) + 3 * self.entries[1] * images

    def rows_bytes(self) -> int:
        """What the derivatives of the outputs of a part take that are made together, and its pass."""
        images = len(self.parts[0])
        row = self.row_entries(self.leaves, images)
        most = max(row, min(self.memory // 4 // self.dtype.itemsize, _TOGETHER, self.outputs * images * row))
        return self.pass_bytes(images) + most * self.dtype.itemsize

    def places(self, name: str) -> Tensor:
        """Flat places of the entries of a parameter that are kept."""
        leaf = self.leaves[name]
        kept = self.mask.get(name)
        return torch.arange(leaf.numel(), device=leaf.device) if kept is None else kept.flatten().nonzero().flatten()

    def derivatives(self, part: Images, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Derivatives of the outputs of a part, ``(rows, entries)``: of small networks many rows together."""
        leaves = [self.leaves[name] for name in names]
        with torch.enable_grad():
            out = self.run(part, self.leaves).flatten()

        def pulled(vector: Tensor) -> Any:
            return torch.autograd.grad(out, leaves, vector, retain_graph=True, materialize_grads=True)

        most = min(_TOGETHER, self.memory // 4 // self.dtype.itemsize)
        for rows in torch.arange(len(out), device=out.device).split(max(1, most // self.row_entries(names, len(part)))):
            picked = nn.functional.one_hot(rows, len(out)).to(out)
            with _without_warnings():
                found = torch.func.vmap(pulled)(picked) if len(rows) > 1 else [g[None] for g in pulled(picked[0])]
            yield {name: entry.flatten(1) for name, entry in zip(names, found, strict=True)}

    def pulled(self, vector: Tensor, x: Images | None = None) -> dict[str, Tensor]:
        """The transposed Jacobian of some images, or of all, times a vector ``(images, outputs)``."""
        total = {name: torch.zeros_like(leaf) for name, leaf in self.leaves.items()}
        parts = (self.x if x is None else x).split(self.together)
        for part, along in zip(parts, vector.to(self.x.device, self.dtype).split(self.together), strict=True):
            with torch.enable_grad():
                out = self.run(part, self.leaves)
            found = torch.autograd.grad(out, list(self.leaves.values()), along, materialize_grads=True)
            for name, derivative in zip(total, found, strict=True):
                total[name] += derivative
        return {name: whole * self.mask[name] if name in self.mask else whole for name, whole in total.items()}

    def pushed(self, direction: dict[str, Tensor]) -> Tensor:
        """The Jacobian of all images times a direction, ``(images, outputs)``."""
        at = ({name: leaf.detach() for name, leaf in self.leaves.items()},)
        parts = self.x.split(self.together)
        refused = "an operation of the network has no forward derivative ({}); allowed: 'exact', or 'jacobian' kernels"
        with _without_warnings(), refusing(refused, NotImplementedError, raising=UnsupportedOperation):
            return torch.cat([torch.func.jvp(lambda t, x=x: self.run(x, t), at, (direction,))[1] for x in parts])

    def of(self, data: Any, model: nn.Module) -> "Network":
        """The same function of other images."""
        if self.coupled:
            raise InvalidInput("batch_norm='batch' couples the images of one set; allowed for two: stored, calibrated")
        return replace(self, x=read(data, model)[0].to(self.x.device, self.dtype))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Those of torch of itself: of its first derivative forward, and of functions of which it takes rows one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield


def read(data: Any, model: nn.Module) -> tuple[Images, Tensor | None]:
    """All images of data, and their labels if every batch has some."""
    batches = read_batches(data, own_module(model))
    labels = [y for _, y in batches if y is not None]
    return concatenated([x for x, _ in batches]), torch.cat(labels) if len(labels) == len(batches) else None


class Options(TypedDict, total=False):
    """What every function of this room takes, see `pathex.ntk`."""

    batch_norm: BatchNorm | None
    output: Output
    memory: int | str | None


def network_of(model: nn.Module, data: Any, mask: Tensors | None, options: Options) -> Network:
    """What the arguments that all functions of this room share describe."""
    check_names("option", options, Options.__annotations__)
    output, model = options.get("output"), own_module(model)
    batch_norm: BatchNorm = options.get("batch_norm") or ("batch" if model.training else "stored")
    check_name("batch_norm", batch_norm, ("stored", "calibrated", "batch"))
    dtype, device = compute_dtype(model), next(iter(model.parameters())).device
    x, kept, leaves = read(data, model)[0].to(device, dtype), {}, {}
    if mask is not None:
        (checked := Mask(mask)).check(model)
        kept = {name: entry.to(device) for name, entry in checked.items()}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            weight = parameter.detach().to(dtype, copy=True)
            leaves[name] = (weight.mul_(kept[name]) if name in kept else weight).requires_grad_()
    free = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _ON_CPU
    budget, entries = parse_memory(options.get("memory")) or free, footprint(model, x[:1], output=output)
    how: dict[str, Any] = {"tensors": {name: leaf.detach() for name, leaf in leaves.items()}, "output": output}
    coupled = batch_norm == "batch" and len(calibrate(model, x[:2], **how)) > 0
    statistics: Statistics = "train" if coupled else "running"
    if batch_norm == "calibrated":
        statistics = calibrate(model, x, chunk=max(1, budget // (_LARGEST * entries[1] * dtype.itemsize)), **how)
    for name, module in model.named_modules() if batch_norm == "stored" else ():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InvalidInput(f"batch_norm='stored': {name!r} stores no statistics; allowed: calibrated, batch")
    with torch.no_grad():
        shape = tuple(forward(model, x[:1], **how).shape[1:])

    def run(x: Images, tensors: Tensors) -> Tensor:
        return forward(model, x, tensors=tensors, statistics=statistics, output=output).reshape(len(x), -1)

    return Network(run, x, leaves, kept, batch_norm, budget, coupled, shape, entries)

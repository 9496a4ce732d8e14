"""What a scorer sees: the model, the mask of the round, the pruning set. No data set, no config, no trainer."""

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pathex.distributed import ALONE, Processes
from pathex.errors import InvalidInput, PathexWarning, UnsupportedOperation
from pathex.graph import Graph, Images, Output, Tensors, compute_dtype, concatenated, each, trace
from pathex.masks import all_kept
from pathex.paths import Weights, footprint
from pathex.scores.batches import Batch, contents

# Peak of a pass without gradient, in results of its largest function: 1.9 to 5.2 measured on a dozen networks.
_FORWARD = 5.5
_LATER = 12  # bytes a weight of products, their sums and gradients, which come after calibration


T = TypeVar("T")

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_memory(memory: int | str | None) -> int | None:
    """Bytes of a memory budget, a positive number or text such as ``2GiB`` or ``500MB`` (`InvalidInput` for others)."""
    if memory is None:
        return None
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", str(memory))
    unit = _UNITS.get(match[2].lower()) if match else None
    try:
        size = float(match[1]) * unit if match and unit else 0
    except ValueError:
        size = 0
    if size < 1:
        raise InvalidInput(f"memory must be a positive number of bytes or text such as 2GiB or 500MB, not {memory!r}")
    return int(size)


def mib(size: float) -> str:
    """A number of bytes for a message."""
    return f"{size / 2**20:.4g} MiB"


def generator(*key: int) -> torch.Generator:
    """A CPU generator whose stream depends on every number of the key."""
    state = np.random.SeedSequence([abs(k) for k in key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def signs(like: Tensor, source: torch.Generator) -> Tensor:
    """Independent 1 and -1 in a tensor's form, one entry after another."""
    return (torch.randint(0, 2, like.shape, generator=source) * 2 - 1).to(like)


def normal(like: Tensor, source: torch.Generator) -> Tensor:
    """Independent standard normal numbers in a tensor's form, drawn in float64."""
    return torch.randn(like.shape, dtype=torch.float64, generator=source).to(like)


def once(memo: dict[str, Any], key: str, make: Callable[[], T]) -> T:
    """What is known by a key, made when it is first asked for."""
    if key not in memo:
        memo[key] = make()
    found: T = memo[key]
    return found


@dataclass(frozen=True)
class Problem:
    """One scoring task.

    Attributes:
        model: The network; scorers leave it as it is.
        prunable: The weights to score, by parameter name.
        batches: The pruning set as delivered.
        mask: Name to bool tensor of the round; None keeps everything.
        seed: Seed of whatever a scorer draws.
        round: Number of the round, from 1.
        memory: Memory budget in bytes beside the model; None is chosen from what is free.
        strict: Whether doubts are errors.
        memo: What stays the same over the rounds of one prune.
        processes: Those that share the work; each of them has the same problem.
        beside: Bytes that the method holds for a prunable weight, however many images there are.
        wide: Whether it is scored in float64 whatever the precision of the model.
        target: How many weights the mask is to keep, in all or of each; None where only scores are asked for.
        checkpoint: File from which a search goes on, and which it writes.
        on_step: Called with the steps of a search that are done, now and then, and all of them.
    """

    model: nn.Module
    prunable: Tensors
    batches: Sequence[Batch]
    mask: Tensors | None = None
    seed: int = 0
    round: int = 1
    memory: int | None = None
    strict: bool = False
    memo: dict[str, Any] = field(default_factory=dict)
    processes: Processes = ALONE
    beside: int = 0
    wide: bool = False
    target: int | Mapping[str, int] | None = None
    checkpoint: Path | None = None
    on_step: Callable[[int, int], object] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(iter(self.prunable.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of scoring: the model's, but at least float32."""
        return torch.float64 if self.wide else once(self.memo, "dtype", lambda: compute_dtype(self.model))

    @property
    def allowed(self) -> dict[str, Tensor]:
        """Where there are weights to choose from: the mask of the round, on the model's device."""
        mask = self.mask or all_kept(self.prunable)
        return {name: mask[name].to(weight.device) for name, weight in self.prunable.items()}

    def in_float64(self) -> "Problem":
        """The same in float64."""
        return replace(self, wide=True)

    @property
    def images(self) -> Images:
        """All images ``(N, ...)`` on the model's device, in its precision, in canonical order (sorted by content)."""
        return self._canonical()[0]

    @property
    def labels(self) -> Tensor | None:
        """The labels of `images` in their order, on the model's device; None if any batch has none."""
        return self._canonical()[1]

    def _canonical(self) -> tuple[Images, Tensor | None]:
        def sort() -> tuple[Images, Tensor | None]:
            x = concatenated([x.cpu() for x, _ in self.batches])
            given = [y.cpu() for _, y in self.batches if y is not None]
            y = torch.cat(given) if len(given) == len(self.batches) else None
            order = sorted(range(len(x)), key=contents(x, y).__getitem__)
            images = each(x[order].to(self.device, replace(self, wide=False).dtype), Tensor.contiguous, floating=False)
            return images, None if y is None else y[order].to(self.device)

        return once(self.memo, "images", sort)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images, whatever their order and batches."""
        images = sorted(image for x, _ in self.batches for image, _ in contents(x, None))
        return hashlib.sha256(b"".join(images)).hexdigest()

    def doubt(self, message: str) -> None:
        """Warn, once per prune, that a result may not mean what it seems to; `InvalidInput` with ``strict``."""
        if self.strict:
            raise InvalidInput(f"{message} (an error because of strict=True)")
        said: set[str] = self.memo.setdefault("doubts", set())
        if message not in said:
            said.add(message)
            warnings.warn(message, PathexWarning, stacklevel=2)

    def graph(self, output: Output = None, images: Images | None = None) -> Graph:
        """The network, traced; for ``images`` if that can be done for a fixed number of them only."""
        found = once(self.memo, f"graph {output!r}", lambda: trace(self.model, self.images, output=output))
        for node in found.draws:
            raise UnsupportedOperation(
                f"{node.op} in {node.place} draws random numbers in evaluation mode too: no pass could be read again"
            )
        if found.fixed_batch is None or images is None:
            return found
        return trace(self.model, images, output=output)

    def weights(
        self, replaced: Tensors | None = None, dtype: torch.dtype | None = None, *, scored: bool = False
    ) -> Weights:
        """The network's tensors as a reading sees them, the prunable ones times the mask."""
        return Weights(
            self.model,
            dtype or self.dtype,
            mask=self.mask,
            replaced=replaced,
            scored=self.prunable if scored else (),
            prunable=self.prunable,
            infinite=once(self.memo, "not finite", self._not_finite),
        )

    def masked(self, tensors: Tensors | None = None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The prunable weights (``tensors`` in place of the model's own) times the mask: new, without gradient."""
        weights = self.weights(tensors, dtype)
        # Of what is not masked a copy: methods may write into it.
        return {name: weights(name).clone() if self.mask is None else weights(name) for name in self.prunable}

    def _not_finite(self) -> list[str]:
        """The prunable weights that may have entries that are not finite: their sum is not."""
        sums = torch.stack([weight.detach().sum().double() for weight in self.prunable.values()])
        return [name for name, finite in zip(self.prunable, sums.isfinite().tolist(), strict=True) if not finite]

    def budget(self) -> int:
        """Bytes for scoring beside model and images: as given, else half of the free GPU memory, or 2 GiB on a CPU."""
        if self.memory is not None:
            return self.memory
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0] // 2
        return 2 * 2**30

    def room(self, later: int = 0) -> int:
        """Bytes for activations: what the budget leaves, at least half; ``later`` of `beside` are not held yet."""
        budget = self.budget()
        weights = sum(weight.numel() for weight in self.prunable.values())
        held = (self.beside - later) * weights + 2 * self.images.nbytes  # images joined, and in canonical order
        if not later and 2 * held > budget and self.memory is not None and self.processes.world_size == 1:
            self.doubt(
                f"weights, scores and images take about {mib(held)} of memory, more than half of the budget of "
                f"{mib(budget)}: activations have the other half"
            )
        return max(budget - held, budget // 2)

    def micro_batches(self, bytes_per_image: float) -> Iterator[Images]:
        """The images ``(B, ...)`` in canonical order, as many at a time as the budget allows; one at the least."""
        room = self.room()
        if bytes_per_image > room:
            self.doubt(
                f"one image takes {mib(bytes_per_image)} of memory, more than the budget of {mib(self.budget())} "
                f"leaves ({mib(room)}): images are taken one at a time"
            )
        yield from self.images.split(max(1, math.floor(room / max(1.0, bytes_per_image))))


def entries_of_image(problem: Problem, output: Output) -> tuple[int, int]:
    """Entries of the activations of one image, by a forward pass of one image, once a prune."""
    return once(problem.memo, "footprint", lambda: footprint(problem.model, problem.images[:1], output=output))


def calibration_chunk(problem: Problem, images: Images, output: Output) -> int | None:
    """How many images a forward pass without gradient may take at a time."""
    cost, room = _FORWARD * problem.dtype.itemsize * entries_of_image(problem, output)[1], problem.room(_LATER)
    fits = int(room // max(1, cost))
    if len(images) <= fits:
        return None
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in problem.model.modules())
    # In parts, calibration starts again for every BatchNorm.
    if norms > 1 and "calibration in parts" not in problem.memo:
        problem.memo["calibration in parts"] = True
        warnings.warn(
            f"calibrating on {len(images)} images at once takes about {mib(cost * len(images))} of memory, more than "
            f"the budget of {mib(problem.budget())} leaves ({mib(room)}): in parts it takes the time of "
            f"{(norms + 1) / 2:g} passes; allow more memory or fewer calibration_images",
            PathexWarning,
            stacklevel=2,
        )
    return max(1, fits)


def doubt_batches(
    problem: Problem, output: Output, largest: int | None = None, instead: str = "smaller batches"
) -> None:
    """Say that batches as delivered, which cannot be cut, may need more than the memory that was asked for."""
    if problem.memory is None or problem.processes.world_size > 1:
        return
    largest = largest or max(len(x) for x, _ in problem.batches)
    cost = largest * entries_of_image(problem, output)[0] * torch.finfo(problem.dtype).bits // 8
    if cost > problem.memory:
        problem.doubt(
            f"a batch of {largest} images takes about {mib(cost)} of memory, more than the budget of "
            f"{mib(problem.memory)}, and is not cut, as its images count together; allowed: {instead}"
        )

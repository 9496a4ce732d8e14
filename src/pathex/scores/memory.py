"""What an image costs of memory, and what is said where that is more than there is."""

import warnings

import torch
from torch import Tensor, nn

from pathex.errors import PathexWarning
from pathex.paths import footprint
from pathex.scores.problem import Problem, mib, once

# Results of one function, its operands and their copies in another layout of memory, at most.
_FORWARD = 8
_LATER = 12  # bytes a weight of products, their sums and gradients, which come after calibration


def entries_of_image(problem: Problem, output: str | int | None) -> tuple[int, int]:
    """Entries of the activations of one image, by a forward pass of one image, once a prune."""
    return once(problem.memo, "footprint", lambda: footprint(problem.model, problem.images[:1], output=output))


def calibration_chunk(problem: Problem, images: Tensor, output: str | int | None) -> int | None:
    """How many images a forward pass without gradient may take at a time."""
    cost, room = _FORWARD * images.itemsize * entries_of_image(problem, output)[1], problem.room(_LATER)
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


def doubt_batches(problem: Problem, output: str | int | None) -> None:
    """Say that batches as delivered, which cannot be cut, may need more than the memory that was asked for."""
    if problem.memory is None or problem.processes.world_size > 1:
        return
    largest = max(len(x) for x, _ in problem.batches)
    cost = largest * entries_of_image(problem, output)[0] * torch.finfo(problem.dtype).bits // 8
    if cost > problem.memory:
        problem.doubt(
            f"a batch of {largest} images takes about {mib(cost)} of memory, more than the budget of "
            f"{mib(problem.memory)}, and is not cut, as BatchNorm uses its statistics: deliver smaller batches"
        )

"""Passes of a round captured in a CUDA graph in the second round, and replayed with the mask of every later one.

The passes read masks from fixed buffers and everything else from tensors that stay the same over the rounds of a prune.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pathex.capturing import cuda_graph
from pathex.errors import InvalidInput, PathexWarning
from pathex.scores._reader import PathReader

__all__ = ["Summed", "captured", "obstacle"]

Summed = Callable[[PathReader], tuple[Tensor, dict[str, Tensor]]]
"""From a reader to a scalar and scores by name, by work on the device alone."""


def obstacle(reader: PathReader) -> str | None:
    """Why the passes of a reader cannot be captured.

    Args:
        reader: The reader.

    Returns:
        The reason in a few words, or None if they can.
    """
    if reader.problem.device.type != "cuda":
        return f"a CUDA device, not {reader.problem.device.type!r}"
    if not reader.problem.processes.alone or reader.problem.sharded:
        return "one process and whole weights"
    if reader.redraw is not False:
        return "redraw=False: weights are drawn on the CPU"
    return None if reader.reuse_gates == 1 else f"reuse_gates=1, not {reader.reuse_gates!r}"


def captured(reader: PathReader, summed: Summed) -> tuple[Tensor, dict[str, Tensor]]:
    """What the passes of a round give: by replaying those of an earlier one, if the reader says so.

    Args:
        reader: The reader of the round.
        summed: The passes.

    Returns:
        What ``summed`` gives for the reader, in new tensors.

    Raises:
        InvalidInput: If the reader says so and its passes cannot be captured.
    """
    if not reader.capture:
        return summed(reader)
    if (needed := obstacle(reader)) is not None:
        raise InvalidInput(f"capture=True needs {needed}; leave it out")
    known: dict[torch.dtype, _Captured | None] = reader.problem.memo.setdefault("captured", {})
    if reader.precision not in known:  # the first round: libraries choose their kernels, and what stays is made
        known[reader.precision] = None
        return summed(reader)
    passes = known[reader.precision] or _Captured(reader, summed)
    known[reader.precision] = passes
    return passes(reader)


class _Captured:
    """The passes of a reader, captured; carried out as they are written where that fails."""

    def __init__(self, reader: PathReader, summed: Summed) -> None:
        problem = reader.problem
        self._summed = summed
        self._mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in problem.prunable.items()}
        # With a memo of its own, as the problem's will hold the graph.
        still = replace(reader, problem=replace(problem, mask=self._mask, memo=dict(problem.memo)))
        self._replay: Callable[[], object] | None = None

        def work() -> None:
            self._found = summed(still)

        try:
            self._replay = cuda_graph(work, problem.device)
        except RuntimeError as error:  # in whatever way the kernels of a network fail
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            warnings.warn(f"rounds are carried out as written, not captured: {reason}", PathexWarning, stacklevel=2)

    def __call__(self, reader: PathReader) -> tuple[Tensor, dict[str, Tensor]]:
        if self._replay is None:
            return self._summed(reader)
        for name, kept in self._mask.items():
            kept.fill_(True) if reader.problem.mask is None else kept.copy_(reader.problem.mask[name])
        self._replay()
        # The next replay writes over what this one leaves.
        total, scores = self._found
        return total.clone(), {name: score.clone() for name, score in scores.items()}

"""What the path scorers share: the weights they read, BatchNorm calibration, and recorded micro-batches."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pathex.errors import InvalidInput, PathexWarning, UnknownName
from pathex.paths import Moments, Recording, calibrate, read_scales, record
from pathex.scores._problem import Problem, generator

__all__ = ["OPTIONS", "READING", "PathReader", "gradient_scores"]

Calibration = Literal["batch", "running"]
Scales = Literal["auto", "stored"]
Initialiser = Callable[[str, Tensor, torch.Generator], Tensor]

OPTIONS: Mapping[str, str] = {
    "calibration": "batch (default): BatchNorm uses mean and biased variance of the masked network on the calibration "
    "images; running: the stored statistics",
    "calibration_images": "most images that calibration reads, the first in canonical order (default 1024)",
    "redraw": "True draws normal weights with each tensor's own standard deviation every round (seeded by seed and "
    "round), or a function (name, tensor, generator) -> tensor; the ticket keeps the original weights",
    "scales": "auto (default): multiplicative parameters that start equal and below 0.01, and a head of zeros, are "
    "read as one, with a warning; stored: as they are",
    "output": "which of several outputs counts: a key or an index",
}

READING: Mapping[str, Any] = {
    "calibration": "batch",
    "calibration_images": 1024,
    "redraw": False,
    "scales": "auto",
    "output": None,
}

# Bytes that one image costs in a recorded and replayed pass with gradient, in elements of all activations.
_REPLAY_COST = 2.5
_FORWARD_COST = 4.0


@dataclass(frozen=True)
class PathReader:
    """Reads a problem's network as paths, the way its options say.

    Attributes:
        problem: Model, mask and pruning set.
        calibration: Statistics of BatchNorm.
        calibration_images: Most images that calibration reads.
        redraw: Whether, or how, weights are drawn anew in each round.
        scales: Whether scales that start at zero are read as one.
        output: Which of several outputs counts.
        dtype: Precision; None is the problem's.
    """

    problem: Problem
    calibration: Calibration
    calibration_images: int
    redraw: bool | Initialiser
    scales: Scales
    output: str | int | None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.calibration not in get_args(Calibration):
            raise UnknownName("calibration", self.calibration, get_args(Calibration))
        if self.scales not in get_args(Scales):
            raise UnknownName("scales", self.scales, get_args(Scales))
        if not isinstance(self.calibration_images, int) or self.calibration_images < 1:
            raise InvalidInput(f"calibration_images must be an integer of at least 1, not {self.calibration_images!r}")
        if not isinstance(self.redraw, bool) and not callable(self.redraw):
            raise InvalidInput(
                f"redraw must be True, False or (name, tensor, generator) -> tensor, not {self.redraw!r}"
            )

    def in_float64(self) -> "PathReader":
        """The same reader in float64.

        Returns:
            A new reader.
        """
        return replace(self, dtype=torch.float64)

    @property
    def precision(self) -> torch.dtype:
        """Precision of the passes."""
        return self.dtype or self.problem.dtype

    # -- tensors -------------------------------------------------------------------------------------------------------

    def fixed(self) -> dict[str, Tensor]:
        """Parameters that are read as one because they start at zero, by name; warns once per prune.

        Returns:
            Name to ones.
        """
        if self.scales == "stored":
            return {}
        memo = self.problem.memo
        if "scales" not in memo:
            memo["scales"] = read_scales(self.problem.model, self.problem.survey(self.output), self.problem.prunable)
            if memo["scales"]:
                names = ", ".join(memo["scales"])
                warnings.warn(
                    f"read as one because they start at zero (scales='stored' takes them as they are): {names}",
                    PathexWarning,
                    stacklevel=2,
                )
        return {name: ones.to(self.precision) for name, ones in memo["scales"].items()}

    def weights(self) -> dict[str, Tensor]:
        """The masked prunable weights that are read in this round.

        Returns:
            Name to tensor.
        """
        fixed = self.fixed()
        read = {name: fixed.get(name, own) for name, own in self.problem.prunable.items()}
        if self.redraw:
            draw = self.redraw if callable(self.redraw) else _own_spread(fixed)
            source = generator(self.problem.seed, self.problem.round)
            read = {name: _drawn(draw, name, weight.detach(), source) for name, weight in read.items()}
        return self.problem.masked(read, self.precision)

    def other(self) -> dict[str, Tensor]:
        """What stands in for parameters that are not prunable.

        Returns:
            Name to tensor.
        """
        return {name: ones for name, ones in self.fixed().items() if name not in self.problem.prunable}

    # -- passes --------------------------------------------------------------------------------------------------------

    def statistics(self, tensors: Mapping[str, Tensor]) -> Sequence[Moments] | Literal["running"]:
        """What BatchNorm uses: calibrated moments, or the stored statistics.

        Args:
            tensors: Masked weights and other replaced parameters.

        Returns:
            Moments by BatchNorm call, or ``running``.
        """
        if self.calibration == "running":
            return "running"
        images = self.problem.images[: self.calibration_images]
        tensors = {name: tensor.detach().to(images.dtype) for name, tensor in tensors.items()}
        footprint = self.problem.survey(self.output).footprint
        fits = int(self.problem.budget() // max(1.0, footprint.largest * images.itemsize * _FORWARD_COST))
        chunk = None if len(images) <= fits else max(1, fits)
        return calibrate(self.problem.model, images, tensors=tensors, chunk=chunk, output=self.output)

    def recordings(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Recording]]:
        """Recorded passes over the pruning set in micro-batches that the memory budget allows.

        Args:
            tensors: Masked weights and other replaced parameters.

        Yields:
            Images ``(B, ...)`` and their recording.
        """
        model, total = self.problem.model, self.problem.survey(self.output).footprint.total
        parts = list(self.problem.micro_batches(total * self.precision.itemsize * _REPLAY_COST))
        # When everything fits in one batch, the recorded pass is the calibration.
        together = len(parts) == 1 and len(parts[0]) <= self.calibration_images
        calibration: Any = "batch" if together and self.calibration == "batch" else self.statistics(tensors)
        for part in parts:
            x = part.to(self.precision)
            yield x, record(model, x, tensors=tensors, calibration=calibration, output=self.output)


def _drawn(draw: Initialiser, name: str, weight: Tensor, source: torch.Generator) -> Tensor:
    drawn = draw(name, weight, source)
    if not isinstance(drawn, Tensor) or drawn.shape != weight.shape:
        found = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
        raise InvalidInput(f"redraw must return a tensor of shape {tuple(weight.shape)} for {name!r}, not {found}")
    return drawn


def _own_spread(fixed: Mapping[str, Tensor]) -> Initialiser:
    def draw(name: str, weight: Tensor, source: torch.Generator) -> Tensor:
        spread = 1.0 if name in fixed else float(weight.double().std()) if weight.numel() > 1 else 1.0
        return torch.randn(weight.shape, dtype=torch.float64, generator=source) * spread

    return draw


def gradient_scores(total: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``theta^2 dR/d(theta^2)`` for a sum R over squared weights, written as ``theta dR/dtheta / 2``.

    Args:
        total: R, a scalar.
        weights: Leaves that R was computed from, by name.

    Returns:
        Name to score; zero for a weight that R does not depend on.

    Raises:
        InvalidInput: If R depends on none of the weights.
    """
    if not total.requires_grad:
        raise InvalidInput("the output that counts depends on no prunable weight; name another one with output=")
    grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if grad is None else weight.detach() * grad / 2
        for (name, weight), grad in zip(weights.items(), grads, strict=True)
    }

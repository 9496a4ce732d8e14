"""What scorers share: the weights they see, BatchNorm statistics, and recorded passes over the pruning set."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput, PathexWarning, listed
from pathex.graph import Graph, Images, Output, breaks_in_channels_last, held_bytes, tensors_in
from pathex.paths import (
    TINY_SCALE,
    Linear,
    Moments,
    PerSample,
    Record,
    Recording,
    Smooth,
    Statistics,
    Weights,
    calibrate,
    lowered,
    read_scales,
    survey,
)
from pathex.scores.kept import KeptLinear, KeptRecord, KeptRecording, kept_layers
from pathex.scores.options import Initialiser, Redraw, Scales
from pathex.scores.problem import Problem, calibration_chunk, generator, once

Recorded = Callable[[], tuple[Images, Recording]]
R = TypeVar("R", bound="Reader")

TOTAL = ""  # what stands beside scores of weights, which have names, when both are summed


@dataclass(frozen=True)
class Reader:
    """The weights and statistics of a problem's network as the options of a method say; in the problem's precision."""

    problem: Problem
    method: str
    calibration: str
    calibration_images: int
    redraw: Redraw
    scales: Scales
    output: Output

    def in_float64(self: R) -> R:
        """The same in float64."""
        return replace(self, problem=self.problem.in_float64())

    @property
    def precision(self) -> torch.dtype:
        """That of the passes."""
        return self.problem.dtype

    def fixed(self) -> dict[str, Tensor]:
        """Parameters that are read as one because they start at zero; warns once per prune."""
        if self.scales == "stored":
            return {}
        scales = once(self.problem.memo, "scales", self._zero_scales)
        return {name: ones.to(self.precision) for name, ones in scales.items()}

    def _zero_scales(self) -> dict[str, Tensor]:
        problem = self.problem
        # The network is traced for them only where a parameter may be one.
        if not _may_be_scales(problem.model, problem.prunable):
            return {}
        found = read_scales(problem.model, survey(problem.graph(self.output)), problem.prunable)
        if found:
            warnings.warn(
                "read as one because they start at or near zero (scales='stored' takes them as they are): "
                f"{listed(list(found))}",
                PathexWarning,
                stacklevel=2,
            )
        return found

    def weights(self) -> dict[str, Tensor]:
        """The masked prunable weights that are read in this round."""
        return self.problem.masked(self.read(), self.precision)

    def read(self) -> dict[str, Tensor]:
        """What stands in for prunable weights: those that are redrawn, and those that are read as one."""
        fixed = self.fixed()
        read = {name: ones for name, ones in fixed.items() if name in self.problem.prunable}
        if self.redraw:
            draw = self.redraw if callable(self.redraw) else _own_spread(fixed)
            source = generator(self.problem.seed, self.problem.round)
            for name, own in self.problem.prunable.items():
                read[name] = _drawn(draw, name, read.get(name, own).detach(), source)
        return read

    def other(self) -> dict[str, Tensor]:
        """What stands in for parameters that are not prunable."""
        return {name: ones for name, ones in self.fixed().items() if name not in self.problem.prunable}

    def statistics(self, tensors: Mapping[str, Tensor]) -> Statistics:
        """What BatchNorm uses: calibrated moments, the stored statistics, or those of each batch."""
        if self.calibration != "batch":
            return self.calibration  # type: ignore[return-value]
        images = self.problem.images[: self.calibration_images]
        own = {name: tensor.detach().to(self.problem.dtype) for name, tensor in tensors.items()}
        chunk = calibration_chunk(self.problem, images, self.output)
        processes = self.problem.processes
        return calibrate(self.problem.model, images, tensors=own, chunk=chunk, output=self.output, processes=processes)


@dataclass(frozen=True)
class PathReader(Reader):
    """Reads a problem's network as paths."""

    smooth: Smooth = "secant"
    per_sample: PerSample = "refuse"
    tf32: bool = False

    def graph(self, images: Images | None = None) -> Graph:
        """The network, lowered."""
        return lowered(self.problem.graph(self.output, images))

    def tensors(self, *, scored: bool = True) -> Weights:
        """The tensors of the network that are read in this round."""
        return self.problem.weights({**self.other(), **self.read()}, self.precision, scored=scored)

    def coefficients(self) -> Sequence[Moments] | Literal["running"]:
        """What BatchNorm layers are read with: calibrated moments, or the stored statistics."""
        if self.calibration == "running":
            return "running"
        found = self.statistics({**self.other(), **self.weights()})
        assert found != "train", "not among the calibrations of this reader"
        return found

    def recordings(self, tensors: Weights) -> list[Recorded]:
        """Recorded passes over the pruning set in micro-batches that the memory budget allows."""
        layers = kept_layers(self.problem, self.graph)
        parts = list(self.problem.micro_batches(held_bytes(self.graph(), self.precision)))
        # When everything fits in one batch, the recorded pass is the calibration.
        together = len(parts) == 1 and len(parts[0]) <= self.calibration_images
        statistics: Any = "batch" if together and self.calibration == "batch" else self.coefficients()

        def recorded(part: Images) -> tuple[Images, Recording]:
            x = self.laid_out(part)
            if layers is not None:
                return x, KeptRecord(layers, tensors, statistics, self.smooth).recording(*tensors_in(x))
            return x, Record(self.graph(x), tensors, statistics, self.smooth).recording(*tensors_in(x))

        return [partial(recorded, part) for part in parts]

    def linear(self, tensors: Weights, recording: Recording, **how: Any) -> Linear:
        """The network as a linear map, with the coefficients of a recorded pass."""
        if isinstance(recording, KeptRecording):
            return KeptLinear(recording.layers, tensors, recording.tape, recording.statistics, **how)
        return Linear(recording.graph, tensors, recording.tape, recording.statistics, **how)

    def laid_out(self, images: Images) -> Images:
        """Images as they are read: in channels last where that is faster."""
        images = images.to(self.precision)
        if not isinstance(images, Tensor):
            return images
        fast = images.dim() == 4 and self.precision == torch.float32 and images.device.type == "cpu"
        convolutions = [node for node in self.graph().path if node.op == "conv2d"] if fast else []
        forms = [(node.args[1].shape, node["stride"], node["groups"]) for node in convolutions]
        if convolutions and not any(breaks_in_channels_last(*form) for form in forms):
            return images.contiguous(memory_format=torch.channels_last)
        return images


def _may_be_scales(model: nn.Module, prunable: Collection[str]) -> bool:
    """Whether a parameter may be a scale or a head that starts at zero."""
    for name, parameter in model.named_parameters():
        whole = parameter.detach()
        if name in prunable:
            if not whole.any():
                return True
        elif not name.endswith("bias") and whole.numel() and float(whole.abs().max()) < TINY_SCALE:
            return True
    return False


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

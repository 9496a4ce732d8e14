"""What scorers share: the weights they see, BatchNorm statistics, and passes over the pruning set.

`PathReader` is for methods that read the network as paths, `ModelReader` for those that differentiate the network
itself.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput, PathexWarning, UnknownName
from pathex.graph import Graph, held_bytes
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
    forward,
    lowered,
    read_scales,
    survey,
)
from pathex.scores._memory import calibration_chunk, doubt_batches, entries_of_image
from pathex.scores._problem import Problem, generator

__all__ = [
    "IGNORED",
    "MODEL_OPTIONS",
    "MODEL_READING",
    "ON_GPU",
    "OPTIONS",
    "PER_SAMPLE",
    "READING",
    "SMOOTH",
    "TOTAL",
    "ModelReader",
    "PathReader",
    "Reader",
]

Scales = Literal["auto", "stored"]
Initialiser = Callable[[str, Tensor, torch.Generator], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Recorded = Callable[[], tuple[Tensor, Recording]]
Tensors = Mapping[str, Tensor]
R = TypeVar("R", bound="Reader")

_CALIBRATION = {
    "train": "the statistics of each batch as delivered, as in training",
    "batch": "mean and biased variance of the masked network on the calibration images",
    "running": "the stored statistics",
}


def _options(default: str, *others: str) -> Mapping[str, str]:
    known = "; ".join(f"{name}: {_CALIBRATION[name]}" for name in others)
    return {
        "calibration": f"{default} (default): BatchNorm uses {_CALIBRATION[default]}; {known}",
        "calibration_images": "most images that calibration reads, the first in canonical order (default 1024)",
        "redraw": "True draws normal weights with each tensor's own standard deviation every round (seeded by seed and "
        "round), or a function (name, tensor, generator) -> tensor; the ticket keeps the original weights (default "
        "False)",
        "scales": "auto (default): multiplicative parameters that start equal and below 0.01, and a head of zeros, are "
        "read as one, with a warning; stored: as they are",
        "output": "which of several outputs counts: a key or an index (default None: the first tensor)",
    }


OPTIONS: Mapping[str, str] = _options("batch", "running")
SMOOTH: Mapping[str, str] = {
    "smooth": "coefficient of smooth activations (GELU, SiLU, ...): secant phi(x)/x (default), tangent phi'(x), or "
    "mixed: the secant on the way and the tangent on the way back, as the kernel has it",
}
ON_GPU: Mapping[str, str] = {
    "tf32": "True: on a GPU products are taken in TF32, with 10 bits behind the leading one (default False: float32)",
}
PER_SAMPLE: Mapping[str, str] = {
    "per_sample": "coefficients that only a sample has (LayerNorm and its like, attention, gates, products of "
    "branches): refuse (default), or one: they count 1 where every gate is open",
}
MODEL_OPTIONS: Mapping[str, str] = {
    **_options("train", "batch", "running"),
    "scales": "auto (default): multiplicative parameters that start equal and below 0.01 are read as one, and a head "
    "of zeros as random signs drawn from the seed, with a warning; stored: as they are",
    "loss": "function (outputs, labels) -> mean loss; default: cross-entropy",
}

READING: Mapping[str, Any] = {
    "calibration": "batch",
    "calibration_images": 1024,
    "redraw": False,
    "scales": "auto",
    "output": None,
}
MODEL_READING: Mapping[str, Any] = {**READING, "calibration": "train", "loss": None}

IGNORED = 255  # label of pixels that belong to no class
TOTAL = ""  # what stands beside scores of weights, which have names, when both are summed


@dataclass(frozen=True)
class Reader:
    """The weights and statistics of a problem's network, the way its options say.

    Attributes:
        problem: Model, mask and pruning set.
        calibration: What BatchNorm uses.
        calibration_images: Most images that calibration reads.
        redraw: Whether, or how, weights are drawn anew in each round.
        scales: Whether scales that start at zero are read as one.
        output: Which of several outputs counts.
        dtype: Precision; None is the problem's.
    """

    problem: Problem
    calibration: str
    calibration_images: int
    redraw: bool | Initialiser
    scales: Scales
    output: str | int | None
    dtype: torch.dtype | None = None

    calibrations: ClassVar[Sequence[str]] = ("batch", "running")

    def __post_init__(self) -> None:
        if self.calibration not in self.calibrations:
            raise UnknownName("calibration", self.calibration, self.calibrations)
        if self.scales not in get_args(Scales):
            raise UnknownName("scales", self.scales, get_args(Scales))
        if not isinstance(self.calibration_images, int) or self.calibration_images < 1:
            raise InvalidInput(f"calibration_images must be an integer of at least 1, not {self.calibration_images!r}")
        if not isinstance(self.redraw, bool) and not callable(self.redraw):
            raise InvalidInput(
                f"redraw must be True, False or (name, tensor, generator) -> tensor, not {self.redraw!r}"
            )

    def in_float64(self: R) -> R:
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
            memo["scales"] = self._zero_scales()
            if memo["scales"]:
                names = list(memo["scales"])
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                warnings.warn(
                    "read as one because they start at or near zero (scales='stored' takes them as they are): "
                    f"{', '.join(names[:4])}{more}",
                    PathexWarning,
                    stacklevel=2,
                )
        return {name: ones.to(self.precision) for name, ones in memo["scales"].items()}

    def _zero_scales(self) -> dict[str, Tensor]:
        """The network is traced for them only where a parameter may be one."""
        problem = self.problem
        if not _may_be_scales(problem.model, problem.prunable):
            return {}
        return read_scales(problem.model, survey(problem.graph(self.output)), problem.prunable)

    def weights(self) -> dict[str, Tensor]:
        """The masked prunable weights that are read in this round.

        Returns:
            Name to tensor.
        """
        return self.problem.masked(self.read(), self.precision)

    def read(self) -> dict[str, Tensor]:
        """What stands in for prunable weights.

        Returns:
            Name to tensor, of the redrawn weights and of those that are read as one.
        """
        fixed = self.fixed()
        read = {name: ones for name, ones in fixed.items() if name in self.problem.prunable}
        if self.redraw:
            draw = self.redraw if callable(self.redraw) else _own_spread(fixed)
            source = generator(self.problem.seed, self.problem.round)
            for name, own in self.problem.prunable.items():
                read[name] = _drawn(draw, name, read.get(name, own).detach(), source)
        return read

    def other(self) -> dict[str, Tensor]:
        """What stands in for parameters that are not prunable.

        Returns:
            Name to tensor.
        """
        return {name: ones for name, ones in self.fixed().items() if name not in self.problem.prunable}

    # -- passes --------------------------------------------------------------------------------------------------------

    def statistics(self, tensors: Tensors) -> Statistics:
        """What BatchNorm uses: calibrated moments, the stored statistics, or those of each batch.

        Args:
            tensors: Masked weights and other replaced parameters.

        Returns:
            Moments by BatchNorm call, ``running`` or ``train``.
        """
        if self.calibration != "batch":
            return self.calibration  # type: ignore[return-value]
        images = self.problem.images[: self.calibration_images]
        own = {name: tensor.detach().to(images.dtype) for name, tensor in tensors.items()}
        chunk = calibration_chunk(self.problem, images, self.output)
        how: dict[str, Any] = {"output": self.output, "processes": self.problem.processes}
        return calibrate(self.problem.model, images, tensors=own, chunk=chunk, **how)


@dataclass(frozen=True)
class PathReader(Reader):
    """Reads a problem's network as paths.

    Attributes:
        smooth: The coefficient of smooth activations in a recorded pass.
        per_sample: What an open reading does with coefficients that belong to a sample.
        tf32: Whether products are taken in TF32 on a GPU.
    """

    smooth: Smooth = "secant"
    per_sample: PerSample = "refuse"
    tf32: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.tf32, bool):
            raise InvalidInput(f"tf32 must be True or False, not {self.tf32!r}")
        for name, known in (("smooth", get_args(Smooth)), ("per_sample", get_args(PerSample))):
            if getattr(self, name) not in known:
                raise UnknownName(name, getattr(self, name), known)

    def graph(self, images: Tensor | None = None) -> Graph:
        """The network, lowered.

        Args:
            images: What it is run on.

        Returns:
            The graph.
        """
        return lowered(self.problem.graph(self.output, images))

    def tensors(self, *, scored: bool = True) -> Weights:
        """The tensors of the network that are read in this round.

        Args:
            scored: Whether the scores of prunable weights are asked for.

        Returns:
            The tensors, made where they are used.
        """
        return self.problem.weights({**self.other(), **self.read()}, self.precision, scored=scored)

    def coefficients(self) -> Sequence[Moments] | Literal["running"]:
        """What BatchNorm layers are read with: calibrated moments, or the stored statistics.

        Returns:
            Moments by BatchNorm call, or ``running``.
        """
        if self.calibration == "running":
            return "running"
        found = self.statistics({**self.other(), **self.weights()})
        assert found != "train", "not among the calibrations of this reader"
        return found

    def recordings(self, tensors: Weights) -> list[Recorded]:
        """Recorded passes over the pruning set in micro-batches that the memory budget allows.

        Args:
            tensors: The tensors of the network.

        Returns:
            For each micro-batch a function that makes the pass: it returns images ``(B, ...)`` and their recording.
        """
        parts = list(self.problem.micro_batches(held_bytes(self.graph(), self.precision)))
        # When everything fits in one batch, the recorded pass is the calibration.
        together = len(parts) == 1 and len(parts[0]) <= self.calibration_images
        statistics: Any = "batch" if together and self.calibration == "batch" else self.coefficients()

        def recorded(part: Tensor) -> tuple[Tensor, Recording]:
            x = self.laid_out(part)
            graph = self.graph(x)
            reading = Record(graph, tensors, statistics, self.smooth)
            with torch.no_grad():
                output = reading.run(x)
            return x, Recording(graph, output, reading.tape, reading.moments)

        return [partial(recorded, part) for part in parts]

    def linear(self, tensors: Weights, recording: Recording, **how: Any) -> Linear:
        """The network as a linear map, with the coefficients of a recorded pass.

        Args:
            tensors: The tensors of the network.
            recording: The pass.
            **how: Further arguments of `pathex.paths.Linear`.

        Returns:
            The reading.
        """
        return Linear(recording.graph, tensors, recording.tape, recording.statistics, **how)

    def laid_out(self, images: Tensor) -> Tensor:
        """Images as they are read: in channels last where that is faster.

        Args:
            images: ``(N, ...)``.

        Returns:
            The same.
        """
        images = images.to(self.precision)
        fast = images.dim() == 4 and self.precision == torch.float32 and images.device.type == "cpu"
        if fast and any(node.op == "conv2d" for node in self.graph().path):
            return images.contiguous(memory_format=torch.channels_last)
        return images


@dataclass(frozen=True)
class ModelReader(Reader):
    """Runs a problem's network itself, differentiably.

    Attributes:
        loss: Function of outputs and labels; None is cross-entropy.
    """

    loss: Loss | None = None

    calibrations: ClassVar[Sequence[str]] = ("train", "batch", "running")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None and not callable(self.loss):
            raise InvalidInput(f"loss must be a function (outputs, labels) -> mean loss, not {self.loss!r}")

    def fixed(self) -> dict[str, Tensor]:
        """As in `Reader`, with a head of zeros read as random signs: with ones no loss tells the classes apart.

        Returns:
            Name to ones or signs.
        """
        found, source = super().fixed(), generator(self.problem.seed)
        for name in sorted(found.keys() & set(self.problem.prunable)):
            signs = torch.randint(0, 2, found[name].shape, generator=source) * 2 - 1
            found[name] = signs.to(found[name])
        return found

    def batches(self, *, labels: bool = True) -> Iterator[tuple[Tensor, Any]]:
        """The pruning set: with BatchNorm as in training the batches as delivered, otherwise canonical micro-batches.

        Args:
            labels: Whether labels are needed.

        Yields:
            Images ``(B, ...)`` as they are read and labels (or None), on the model's device.

        Raises:
            InvalidInput: If labels are needed and missing.
        """
        if labels and any(y is None for _, y in self.problem.batches):
            raise InvalidInput("the method needs labels: data must deliver (x, y)")
        if self.calibration == "train":
            doubt_batches(self.problem, self.output)
            device = self.problem.device
            for x, y in self.problem.batches:
                yield x.to(device, self.precision), None if y is None else y.to(device)
            return
        given, first = self.problem.labels, 0
        # What each function leaves for the backward pass, and what that makes of it.
        cost = 2 * self.precision.itemsize * entries_of_image(self.problem, self.output)[0]
        for x in self.problem.micro_batches(cost):
            yield x.to(self.precision), None if given is None else given[first : first + len(x)]
            first += len(x)

    def forward(self, x: Tensor, tensors: Tensors, statistics: Statistics) -> Tensor:
        """The output of the network, differentiable as often as its functions are.

        Args:
            x: Images ``(B, ...)``.
            tensors: Masked weights and other replaced parameters.
            statistics: What BatchNorm uses (see `statistics`).

        Returns:
            Output ``(B, ...)``.
        """
        return forward(self.problem.model, x, tensors=tensors, statistics=statistics, output=self.output)

    def loss_of(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch.

        Args:
            outputs: ``(B, classes, ...)``.
            labels: Class numbers ``(B, ...)``, of pixels 255 where no class is; or class probabilities.

        Returns:
            A scalar.

        Raises:
            InvalidInput: If labels do not fit the outputs.
        """
        labels = self.fitting(outputs, labels)
        if self.loss is not None:
            return self.loss(outputs, labels)
        if labels.is_floating_point():
            return F.cross_entropy(outputs, labels.to(outputs.dtype))
        return F.cross_entropy(outputs, labels, ignore_index=IGNORED if labels.dim() > 1 else -100)

    def fitting(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The labels as cross-entropy takes them, class numbers stored as floating point included.

        Args:
            outputs: ``(B, classes, ...)``.
            labels: Labels of the batch.

        Returns:
            Class numbers ``(B, ...)`` int64 or class probabilities in the shape of the outputs; with a loss of the
            user's own, whatever was given.

        Raises:
            InvalidInput: If labels do not fit the outputs.
        """
        if labels.is_inference():
            labels = labels.clone()  # what was made in inference mode cannot be saved for a backward pass
        if self.loss is not None:
            return labels
        if outputs.dim() < 2:
            raise InvalidInput(f"cross-entropy needs outputs (N, classes, ...), not {tuple(outputs.shape)}; pass loss=")
        if labels.is_floating_point() and labels.dim() == 1 and bool((labels == labels.round()).all()):
            labels = labels.long()
        numbers = outputs.shape[:1] + outputs.shape[2:]
        if labels.shape != (outputs.shape if labels.is_floating_point() else numbers):
            raise InvalidInput(
                f"labels {tuple(labels.shape)} of {labels.dtype} do not fit outputs {tuple(outputs.shape)}; allowed: "
                f"class numbers {tuple(numbers)} or class probabilities {tuple(outputs.shape)}"
            )
        if labels.is_floating_point():
            return labels
        classes, seen = outputs.shape[1], labels[labels != IGNORED] if labels.dim() > 1 else labels
        if seen.numel() and not 0 <= int(seen.min()) <= int(seen.max()) < classes:
            wrong = int(seen.min()) if int(seen.min()) < 0 else int(seen.max())
            raise InvalidInput(f"label {wrong} is no class of an output with {classes} classes (0 to {classes - 1})")
        return labels.long()


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

"""What scorers share: the weights they see, BatchNorm statistics, and passes over the pruning set.

`PathReader` is for methods that read the network as paths, `ModelReader` for those that differentiate the network
itself.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.errors import InvalidInput, PathexWarning, UnknownName
from pathex.paths import (
    Leaves,
    Moments,
    PerSample,
    Recording,
    Smooth,
    Statistics,
    Tensors,
    calibrate,
    forward,
    read_scales,
    record,
)
from pathex.scores._memory import calibration_chunk, cost_of_image, doubt_batches, few
from pathex.scores._problem import Problem, generator
from pathex.sharded import in_one_piece

__all__ = [
    "IGNORED",
    "MODEL_OPTIONS",
    "MODEL_READING",
    "ON_GPU",
    "OPTIONS",
    "PER_SAMPLE",
    "READING",
    "REUSE_GATES",
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
Use = Callable[[Recorded], object]
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
REUSE_GATES: Mapping[str, str] = {
    "reuse_gates": "gates and statistics are recorded in every k-th round only, from the first on (default 1: each); "
    "they are kept where all images fit in one pass, elsewhere they are recorded again with that round's weights. Not "
    "with an adaptive schedule: re-used gates hide from it that scores age",
}
ON_GPU: Mapping[str, str] = {
    "capture": "True: on a GPU the passes of the second round are captured in a CUDA graph, which later rounds replay "
    "(default False: they are carried out one function at a time); scores are the same",
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
        self.problem.memo.setdefault("costs", {})  # known to problems that are made from this one
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

    @property
    def layout(self) -> torch.memory_format:
        """In which layout of memory the images are read."""
        return self.problem.layout(self.output)

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
                names = list(memo["scales"])
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                warnings.warn(
                    "read as one because they start at or near zero (scales='stored' takes them as they are): "
                    f"{', '.join(names[:4])}{more}",
                    PathexWarning,
                    stacklevel=2,
                )
        return {name: ones.to(self.precision) for name, ones in memo["scales"].items()}

    def weights(self) -> dict[str, Tensor]:
        """The masked prunable weights that are read in this round.

        Returns:
            Name to tensor.
        """
        return self.problem.masked(self._read(), self.precision)

    def leaves(self) -> Leaves:
        """The same, made where the network uses them, for methods that need their gradient once.

        Returns:
            Name to what makes the weight, which takes up gradients.
        """
        return self.problem.leaves(self._read(), self.precision)

    def _read(self) -> dict[str, Tensor]:
        """What stands in for prunable weights."""
        fixed = self.fixed()
        read = {name: ones for name, ones in fixed.items() if name in self.problem.prunable}
        if self.redraw:
            draw = self.redraw if callable(self.redraw) else _own_spread(fixed)
            source = generator(self.problem.seed, self.problem.round)
            for name, own in self.problem.prunable.items():
                read[name] = _drawn(draw, name, in_one_piece(read.get(name, own).detach()), source)
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
        images = self.problem.laid_out(self.layout)[: self.calibration_images]
        tensors = {name: tensor.detach().to(images.dtype) for name, tensor in tensors.items()}
        read = partial(calibrate, self.problem.model, tensors=tensors, output=self.output)
        chunk = calibration_chunk(self.problem, images, partial(read, chunk=None), self.output)
        return read(images, chunk=chunk, processes=self.problem.processes)


@dataclass(frozen=True)
class PathReader(Reader):
    """Reads a problem's network as paths.

    Attributes:
        smooth: The coefficient of smooth activations in a recorded pass.
        per_sample: What an open reading does with coefficients that belong to a sample.
        reuse_gates: Gates and statistics are those of the last round whose number is one more than a multiple of this.
        capture: Whether the passes are captured on a GPU and replayed.
        tf32: Whether products are taken in TF32 on a GPU.
    """

    smooth: Smooth = "secant"
    per_sample: PerSample = "refuse"
    reuse_gates: int = 1
    capture: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.reuse_gates, bool) or not isinstance(self.reuse_gates, int) or self.reuse_gates < 1:
            raise InvalidInput(f"reuse_gates must be an integer of at least 1, not {self.reuse_gates!r}")
        for name in ("capture", "tf32"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInput(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name, known in (("smooth", get_args(Smooth)), ("per_sample", get_args(PerSample))):
            if getattr(self, name) not in known:
                raise UnknownName(name, getattr(self, name), known)

    def coefficients(self, tensors: Tensors) -> Sequence[Moments] | Literal["running"]:
        """What BatchNorm layers are read with: calibrated moments, or the stored statistics.

        Args:
            tensors: Masked weights and other replaced parameters.

        Returns:
            Moments by BatchNorm call, or ``running``.
        """
        found = self.statistics(tensors)
        assert found != "train", "not among the calibrations of this reader"
        return found

    def recordings(self, tensors: Tensors, use: Use, key: Hashable = "") -> list[Recorded]:
        """Recorded passes over the pruning set in micro-batches that the memory budget allows.

        Args:
            tensors: Masked weights and other replaced parameters.
            use: What each of them is used for, which costs memory too.
            key: Tells uses apart that cost different amounts.

        Returns:
            For each micro-batch a function that makes the pass: it returns images ``(B, ...)`` and their recording.
        """
        tensors, kept = self._of_recorded_round(tensors)
        how: dict[str, Any] = {"tensors": tensors, "smooth": self.smooth, "output": self.output}

        def read(x: Tensor, calibration: Any = "batch") -> Recording:
            return record(self.problem.model, x, calibration=calibration, **how)

        cost = cost_of_image(self.problem, (key, self.precision), partial(self._trial, read, use), self.output)
        parts = list(self.problem.micro_batches(cost, self.layout))
        if len(parts) > 1:  # what was kept is of all images: less memory may be free than in the round that kept it
            kept.clear()
        if self.precision in kept:
            return [lambda: (parts[0].to(self.precision), kept[self.precision])]
        # When everything fits in one batch, the recorded pass is the calibration.
        together = len(parts) == 1 and len(parts[0]) <= self.calibration_images
        calibration: Any = "batch" if together and self.calibration == "batch" else self.statistics(tensors)

        def recorded(part: Tensor) -> tuple[Tensor, Recording]:
            x = part.to(self.precision)
            recording = read(x, calibration=calibration)
            if self.reuse_gates > 1 and len(parts) == 1:
                kept[self.precision] = recording
            return x, recording

        return [partial(recorded, part) for part in parts]

    def _trial(self, read: Callable[..., Recording], use: Use) -> Callable[[int], object]:
        """A recorded pass of few images and its use."""
        x = few(self.problem.laid_out(self.layout)).to(self.precision)
        known: Any = "running" if self.calibration == "running" else read(x).statistics
        return lambda count: use(lambda: (x[:count], read(x[:count], calibration=known)))

    def _of_recorded_round(self, tensors: Tensors) -> tuple[Tensors, dict[torch.dtype, Recording]]:
        """The tensors of the round whose gates are used, and what was kept of its passes, by precision."""
        if self.reuse_gates == 1:
            return tensors, {}
        memo, fresh = self.problem.memo, (self.problem.round - 1) % self.reuse_gates == 0
        if "gates of round" not in memo or (fresh and memo["gates of round"] != self.problem.round):
            own = {name: tensor.detach() for name, tensor in tensors.items()}
            memo |= {"gates of round": self.problem.round, "gates of tensors": own, "gates": {}}
        read = {name: tensor.to(self.precision) for name, tensor in memo["gates of tensors"].items()}
        return read, memo["gates"]


@dataclass(frozen=True)
class ModelReader(Reader):
    """Runs a problem's network itself, differentiably.

    Attributes:
        loss: Function of outputs and labels; None is cross-entropy.
        twice: Whether derivatives are taken of derivatives, which are slower in channels last.
    """

    loss: Loss | None = None
    twice: bool = False

    calibrations: ClassVar[Sequence[str]] = ("train", "batch", "running")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None and not callable(self.loss):
            raise InvalidInput(f"loss must be a function (outputs, labels) -> mean loss, not {self.loss!r}")

    @property
    def layout(self) -> torch.memory_format:
        """In which layout of memory the images are read."""
        return torch.contiguous_format if self.twice else super().layout

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

    def batches(
        self, use: Callable[[tuple[Tensor, Any]], object], *, key: Hashable = "", labels: bool = True
    ) -> Iterator[tuple[Tensor, Any]]:
        """The pruning set: with BatchNorm as in training the batches as delivered, otherwise canonical micro-batches.

        Args:
            use: What each of them is used for, and that costs memory.
            key: Tells uses apart.
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
                images = x.to(device, self.precision).contiguous(memory_format=self.layout)
                yield images, None if y is None else y.to(device)
            return
        given, first = self.problem.labels, 0

        def trial() -> Callable[[int], object]:
            x, y = few(self.problem.laid_out(self.layout)).to(self.precision), None if given is None else few(given)
            return lambda count: use((x[:count], None if y is None else y[:count]))

        cost = cost_of_image(self.problem, (key, self.precision), trial, self.output)
        for x in self.problem.micro_batches(cost, self.layout):
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

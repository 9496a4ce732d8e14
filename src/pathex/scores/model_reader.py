"""The network of a problem run as it is, differentiably, with the loss of its labels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.errors import InvalidInput
from pathex.paths import Statistics, forward
from pathex.scores.options import LossOrNone
from pathex.scores.problem import doubt_batches, entries_of_image, generator
from pathex.scores.reader import Reader

IGNORED = 255  # label of pixels that belong to no class


class Leaves(NamedTuple):
    """Tensors that a network is differentiated by, those that it runs on, which hold them, and what BatchNorm uses."""

    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    statistics: Statistics


@dataclass(frozen=True)
class ModelReader(Reader):
    """Runs a problem's network itself, differentiably; without a loss it is cross-entropy."""

    loss: LossOrNone = None

    def fixed(self) -> dict[str, Tensor]:
        """As in `Reader`, with a head of zeros read as random signs: with ones no loss tells the classes apart."""
        found, source = super().fixed(), generator(self.problem.seed)
        for name in sorted(found.keys() & set(self.problem.prunable)):
            signs = torch.randint(0, 2, found[name].shape, generator=source) * 2 - 1
            found[name] = signs.to(found[name])
        return found

    def batches(self, *, labels: bool = True) -> Iterator[tuple[Tensor, Any]]:
        """Images and labels: as delivered for BatchNorm as in training, otherwise in canonical micro-batches."""
        if labels:
            self.require_labels()
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

    def require_labels(self) -> None:
        """Refuse a pruning set without labels."""
        if any(y is None for _, y in self.problem.batches):
            raise InvalidInput(f"method {self.method!r} needs labels: data must deliver (x, y), not x alone")

    def leaves(self) -> Leaves:
        """The weights of this round, to be differentiated by."""
        weights = {name: weight.requires_grad_() for name, weight in self.weights().items()}
        tensors = {**self.other(), **weights}
        return Leaves(weights, tensors, self.statistics(tensors))

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor], statistics: Statistics) -> Tensor:
        """The output of the network, differentiable as often as its functions are."""
        return forward(self.problem.model, x, tensors=tensors, statistics=statistics, output=self.output)

    def loss_of(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """The loss of a batch: its mean, or of cross-entropy with ``none`` each one."""
        labels = self._fitting(outputs, labels)
        if self.loss is not None:
            return self.loss(outputs, labels)
        if labels.is_floating_point():
            return F.cross_entropy(outputs, labels.to(outputs.dtype), reduction=reduction)
        ignored = IGNORED if labels.dim() > 1 else -100
        return F.cross_entropy(outputs, labels, reduction=reduction, ignore_index=ignored)

    def _fitting(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The labels as cross-entropy takes them, class numbers stored as floating point included."""
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

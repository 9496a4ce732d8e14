"""The network of a problem run as it is, differentiably, with the loss of its labels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pathex.errors import InvalidInput
from pathex.graph import Images
from pathex.paths import Statistics, forward, tensors_of
from pathex.scores.kept import KeptForward, KeptLayers, kept_layers
from pathex.scores.options import LossOrName
from pathex.scores.problem import doubt_batches, entries_of_image, generator, signs
from pathex.scores.reader import Reader

IGNORED = -100  # as of F.cross_entropy
IGNORED_IN_MAPS = 255  # of pixels that belong to no class


class Leaves(NamedTuple):
    """Tensors that a network is differentiated by, those that it runs on, which hold them, and what BatchNorm uses."""

    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    statistics: Statistics


@dataclass(frozen=True)
class ModelReader(Reader):
    """Runs a problem's network itself, differentiably."""

    loss: LossOrName = "cross-entropy"

    def fixed(self) -> dict[str, Tensor]:
        """As in `Reader`, with a head of zeros read as random signs: with ones no loss tells the classes apart."""
        found, source = super().fixed(), generator(self.problem.seed)
        for name in sorted(found.keys() & set(self.problem.prunable)):
            found[name] = signs(found[name], source)
        return found

    def batches(self, *, labels: bool = True) -> Iterator[tuple[Images, Any]]:
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

    def forward(self, x: Images, tensors: Mapping[str, Tensor], statistics: Statistics) -> Tensor:
        """The output of the network, differentiable as often as its functions are."""
        return forward(self.problem.model, x, tensors=tensors, statistics=statistics, output=self.output)

    def kept_layers(self) -> KeptLayers | None:
        """The kernels for kept weights in this round, if they are there and faster."""
        return kept_layers(self.problem, lambda: self.problem.graph(self.output))

    def kept_forward(self, layers: KeptLayers, tensors: Mapping[str, Tensor], statistics: Any) -> KeptForward:
        """The network with such kernels, differentiable once."""
        own = tensors_of(self.problem.model, tensors, self.precision)
        return KeptForward(layers, own, statistics, self.precision)

    def loss_of(self, outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """The loss of a batch: its mean, or of cross-entropy with ``none`` each one."""
        if labels.is_inference():
            labels = labels.clone()  # what was made in inference mode cannot be saved for a backward pass
        if not isinstance(self.loss, str):
            found = self.loss(outputs, labels)
            if not isinstance(found, Tensor) or found.numel() != 1:
                raise InvalidInput(f"loss must return one number as a tensor, the mean of a batch, not {found!r:.50}")
            return found.squeeze()
        if self.loss == "cross-entropy":
            return F.cross_entropy(outputs, _of_classes(outputs, labels), reduction=reduction)
        if labels.shape != outputs.shape and labels.numel() == outputs.numel() and 1 in outputs.shape[1:]:
            labels = labels.view_as(outputs)  # one output for each label
        labels = labels.to(outputs)
        if labels.shape != outputs.shape:
            raise InvalidInput(
                f"labels {tuple(labels.shape)} do not fit outputs {tuple(outputs.shape)}; loss={self.loss!r} needs one "
                "for each output"
            )
        if self.loss == "mse":
            return F.mse_loss(outputs, labels)
        if not 0 <= float(labels.min()) <= float(labels.max()) <= 1:
            raise InvalidInput("loss='bce' needs labels in [0, 1]")
        return F.binary_cross_entropy_with_logits(outputs, labels)


def has_class(labels: Tensor) -> Tensor:
    """Where class numbers stand for a class."""
    return (labels != IGNORED) & (labels != IGNORED_IN_MAPS) if labels.dim() > 1 else labels != IGNORED


def _of_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    """The labels as cross-entropy takes them, class numbers stored as floating point included."""
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        raise InvalidInput(
            f"cross-entropy needs outputs (N, classes, ...) with two classes or more, not {tuple(outputs.shape)}; "
            "loss='bce' is for one logit, loss='mse' for regression, loss=FUNCTION for any other"
        )
    if labels.is_floating_point() and labels.dim() == 1 and bool((labels == labels.round()).all()):
        labels = labels.long()
    numbers, classes = outputs.shape[:1] + outputs.shape[2:], outputs.shape[1]
    if labels.shape != (outputs.shape if labels.is_floating_point() else numbers):
        raise InvalidInput(
            f"labels {tuple(labels.shape)} of {labels.dtype} do not fit outputs {tuple(outputs.shape)}; allowed: "
            f"class numbers {tuple(numbers)} or class probabilities {tuple(outputs.shape)}, or another loss: "
            "loss='bce' or 'mse', or a function such as lambda outputs, labels: F.cross_entropy(F.interpolate(outputs, "
            "labels.shape[1:]), labels)"
        )
    if labels.is_floating_point():
        labels = labels.to(outputs.dtype)
        if labels.min() < 0 or (labels.sum(1) - 1).abs().max() > 0.01:
            raise InvalidInput(
                "labels of floating point are class probabilities, which are not negative and sum to 1 over the "
                "classes; these are not: loss='bce' is for several labels an image, loss='mse' for regression"
            )
        return labels
    labels, known = labels.long(), has_class(labels)
    seen = labels[known]
    if seen.numel() and not 0 <= int(seen.min()) <= int(seen.max()) < classes:
        wrong = int(seen.min()) if int(seen.min()) < 0 else int(seen.max())
        raise InvalidInput(f"label {wrong} is no class of an output with {classes} classes (0 to {classes - 1})")
    return labels.masked_fill(~known, IGNORED)

"""The settings of one ticket and of one run, as data."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["RunConfig", "TicketConfig"]


@dataclass(frozen=True)
class TicketConfig:
    """Everything that decides a mask.

    Attributes:
        method: Name of a scorer (see ``pathex methods``).
        sparsity: Fraction of the prunable weights removed, in [0, 1). Not used by ``dense``.
        model: Name of a model (see ``pathex models``): own name, ``timm:NAME``, ``torchvision:NAME``,
            ``package.module:factory``.
        data: Name of a data set (see ``pathex datasets``): own name, ``imagefolder:PATH``, ``npz:PATH``.
        rounds: Score-and-threshold rounds; null is the method's published number.
        allocation: ``global``, ``layer``, ``uniform``, ``erk``, a mapping from weight name to density, or a file: YAML
            or JSON with such a mapping, or a mask, whose layer densities are taken in proportion.
        ignore: Globs over names of modules or parameters that stay dense.
        prunable: Globs over names of modules or parameters that are pruned beside convolutions, linear layers and
            attention.
        start_mask: File of a mask to start from, in any form that ``pathex convert`` reads, weights with zeros
            included; ``zeros`` takes the zeros of the network's own weights; null starts dense.
        min_per_layer: Weights that every layer keeps in any case.
        budget: ``nominal`` counts kept weights, ``effective`` those on input-output paths.
        schedule: ``exponential`` or ``linear`` fall of density over the rounds.
        images_per_class: Images of each class in the pruning set.
        weights: Weights to start from: a file, or a tag of the model's own library; null is random initialization.
        model_options: Options of the model's factory, such as ``width``.
        data_options: Options of the data set, such as ``image_size``.
        method_options: Options of the scorer, such as ``calibration``.
        memory: Memory budget of scoring, in bytes or as text such as ``2GiB``; null is chosen from what is free.
        strict: Whether a layer collapse and other doubts about a scorer are errors.
        seed: Seed of initialization, pruning set, scores and training.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    method: str = "px"
    sparsity: float = 0.9
    model: str = "resnet20"
    data: str = "fashion-mini"
    rounds: int | None = None
    allocation: str | dict[str, float] = "global"
    ignore: tuple[str, ...] = ()
    prunable: tuple[str, ...] = ()
    start_mask: str | None = None
    min_per_layer: int = 0
    budget: str = "nominal"
    schedule: str = "exponential"
    images_per_class: int = 10
    weights: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, Any] = field(default_factory=dict)
    memory: str | int | None = None
    strict: bool = False
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class RunConfig(TicketConfig):
    """Everything that decides the numbers of one run; ``method: dense`` trains without pruning.

    The defaults are the CIFAR-10 protocol of the PX paper (ResNet-20), on the embedded images. Folder and device do not
    decide results and are not part of the run's name.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a training step.
        lr: Learning rate at the start.
        momentum: Momentum of SGD.
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: L2 penalty of SGD, on every parameter.
        milestones: Fractions of the training at which the learning rate is multiplied by ``gamma``.
        gamma: Factor of the learning rate at each milestone.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).
        augment: ``auto`` (the data set's own), ``none``, ``flip``, ``crop-flip`` (zero padding of 4, random crop,
            horizontal flip).
        validation: Fraction of the training images held out for validation, in [0, 1).
        precision: Precision of training, as Lightning Fabric names it (``32-true``, ``bf16-mixed``, ``16-mixed``).
        out: Folder in which the run's own folder is made.
    """

    epochs: int = 160
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    label_smoothing: float = 0.0
    augment: str = "auto"
    validation: float = 0.0
    precision: str = "32-true"
    out: str = "runs"

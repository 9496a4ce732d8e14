"""The settings of one run, as data."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["RunConfig"]


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of one run.

    The defaults are the CIFAR-10 protocol of the PX paper (ResNet-20), on the embedded images. Folder, device and the
    number of rounds between checkpoints do not change results and are not part of the run's name.

    Attributes:
        method: Name of a scorer (see ``pathex methods``), or ``dense`` to train without pruning.
        sparsity: Fraction of the prunable weights removed, in [0, 1). Not used by ``dense``.
        model: Name of a model (see ``pathex models``): own name, ``timm:NAME``, ``torchvision:NAME``,
            ``package.module:factory``.
        data: Name of a data set (see ``pathex datasets``): own name, ``imagefolder:PATH``, ``npz:PATH``.
        rounds: Score-and-threshold rounds; None is the method's published number.
        allocation: ``global``, ``layer``, ``uniform``, ``erk``, or a mapping from weight name to density.
        images_per_class: Images of each class in the pruning set.
        weights: Weights to start from: a file, or a tag of the model's own library; None is random initialization.
        model_options: Options of the model's factory, such as ``width``.
        data_options: Options of the data set, such as ``image_size``.
        method_options: Options of the scorer, such as ``calibration``.
        memory: Memory budget of scoring, in bytes or as text such as ``2GiB``; None is chosen from what is free.
        strict: Whether a layer collapse and other doubts about a scorer are errors.
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
        seed: Seed of initialization, pruning set, scores and training.
        precision: Precision of training, as Lightning Fabric names it (``32-true``, ``bf16-mixed``, ``16-mixed``).
        device: ``auto``, ``cpu`` or ``cuda``.
        out: Folder in which the run's own folder is made.
    """

    method: str = "px"
    sparsity: float = 0.9
    model: str = "resnet20"
    data: str = "fashion-mini"
    rounds: int | None = None
    allocation: str | dict[str, float] = "global"
    images_per_class: int = 10
    weights: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, Any] = field(default_factory=dict)
    memory: str | int | None = None
    strict: bool = False
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
    seed: int = 0
    precision: str = "32-true"
    device: str = "auto"
    out: str = "runs"

"""The settings of one ticket and of one run, as data, and the name of a run's folder, which follows from them."""

import hashlib
import json
import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pathex.errors import Allowed, check_name

_PLAIN = types.MappingProxyType(
    {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
)


def allowed_values(hint: Any) -> str:
    """What a setting may be."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return repr(arguments[1])
    if origin is Literal:
        return ", ".join(arguments)
    if origin in (Union, types.UnionType):
        comma = "," if get_origin(arguments[0]) is Annotated else ""
        return f"{comma} or ".join(allowed_values(argument) for argument in arguments)
    if origin in (tuple, dict):
        return "a list" if origin is tuple else "a mapping such as {name: value}"
    return _PLAIN.get(hint) or ("a file" if issubclass(hint, os.PathLike) else hint.__name__)


PositiveInt = Annotated[int, Allowed("a whole number of at least 1", lambda value: value >= 1)]
NonNegativeInt = Annotated[int, Allowed("a whole number of at least 0", lambda value: value >= 0)]
Seed = Annotated[int, Allowed("a whole number from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)]
Positive = Annotated[float, Allowed("a number above 0", lambda value: value > 0)]
NonNegative = Annotated[float, Allowed("a number of at least 0", lambda value: value >= 0)]
Fraction = Annotated[float, Allowed("a number in [0, 1)", lambda value: 0 <= value < 1)]
_MOMENTS = "fractions of the training, such as 0.5,0.75 for epochs 80 and 120 of 160"
Moments = Annotated[tuple[float, ...], Allowed(_MOMENTS, lambda values: all(0 < value < 1 for value in values))]


@dataclass(frozen=True)
class TicketConfig:
    """Everything that decides a mask.

    Attributes:
        method: Name of a scorer (see ``pathex methods``). ``pathex run`` also knows ``dense``, ``small-dense``,
            ``imp`` and ``magnitude-after-training``.
        sparsity: Fraction of the prunable weights removed, in [0, 1). Not used by ``dense``.
        model: Name of a model (see ``pathex models``): own name, ``timm:NAME``, ``torchvision:NAME``,
            ``package.module:factory``.
        data: Name of a data set (see ``pathex datasets``): own name, ``imagefolder:PATH``, ``npz:PATH``.
        task: ``classification``, ``segmentation``, ``transfer``; ``auto`` follows from the data.
        task_options: Options of the task, such as ``crop`` of segmentation.
        rounds: Score-and-threshold rounds of a scorer; null is the method's published number.
        allocation: ``global``, ``layer``, ``uniform``, ``erk``, a mapping from weight name to density, or a file: YAML
            or JSON with such a mapping, or a mask, whose layer densities are taken in proportion.
        ignore: Globs over names of modules or parameters that stay dense.
        prunable: Globs over names of modules or parameters that are pruned beside convolutions, linear layers and
            attention.
        start_mask: File of a mask to start from, in any form that ``pathex convert`` reads, weights with zeros
            included; ``zeros`` takes the zeros of the network's own weights; null starts dense.
        min_per_layer: Weights that every layer keeps in any case.
        min_per_output: Weights that each output of the network, such as a class, keeps in any case.
        budget: ``nominal`` counts kept weights, ``effective`` those on input-output paths.
        count: What sparsity is a fraction of: ``weights``, ``multiply_adds`` for one image, ``bytes`` on disk.
        schedule: ``exponential`` or ``linear`` fall of density over the rounds; ``adaptive`` or ``adaptive:TOLERANCE``
            leaves rounds of the exponential one out where that hardly changes the mask.
        structure: ``weights``, ``channels`` (filters, attention heads, hidden widths), or ``N:M`` such as ``2:4``.
        narrow: Filters that keep fewer weights than this are given up, and the others scored again, twice; 0: none.
        rounding: ``exact`` numbers of kept weights in each round, or as in the ``released`` code of the method.
        images_per_class: Images of each class in the pruning set.
        pruning_seed: Seed of the choice of the pruning set; null is ``seed``.
        weights: Weights to start from: a file, ``mocov2:FILE``, ``dino:FILE``, ``clip:FILE``, ``imagenet`` or another
            tag of the model's own library; null is random initialization.
        model_options: Options of the model's factory, such as ``width``.
        data_options: Options of the data set, such as ``image_size``.
        method_options: Options of the method, such as ``calibration`` of a scorer or ``levels`` of ``imp``.
        memory: Memory budget of scoring, in bytes or as text such as ``2GiB``; null is chosen from what is free.
        strict: Whether a layer collapse and other doubts about a scorer are errors.
        seed: Seed of initialization, pruning set, scores and training.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    method: str = "px"
    sparsity: Fraction = 0.9
    model: str = "resnet20"
    data: str = "fashion-mini"
    task: str = "auto"
    task_options: dict[str, Any] = field(default_factory=dict)
    rounds: PositiveInt | None = None
    allocation: str | dict[str, float] = "global"
    ignore: tuple[str, ...] = ()
    prunable: tuple[str, ...] = ()
    start_mask: str | None = None
    min_per_layer: NonNegativeInt = 0
    min_per_output: NonNegativeInt = 0
    budget: Literal["nominal", "effective"] = "nominal"
    count: Literal["weights", "multiply_adds", "bytes"] = "weights"
    schedule: str = "exponential"
    structure: str = "weights"
    narrow: NonNegativeInt = 0
    rounding: Literal["exact", "released"] = "exact"
    images_per_class: PositiveInt = 10
    pruning_seed: Seed | None = None
    weights: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, Any] = field(default_factory=dict)
    memory: str | int | None = None
    strict: bool = False
    seed: Seed = 0
    device: str = "auto"


@dataclass(frozen=True)
class RunConfig(TicketConfig):
    """Everything that decides the numbers of one run.

    Beside the scorers, ``method`` may be ``dense`` (no pruning), ``small-dense`` (a dense network as small as the
    ticket), ``imp`` (iterative magnitude pruning with rewinding) or ``magnitude-after-training``. The defaults are the
    CIFAR-10 protocol of the PX paper (ResNet-20), on the embedded images. Folder, device, logger and engine do not
    decide results, but for rounding, and are not part of the run's name.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a training step, over all devices.
        accumulate: Parts in which the gradient of a step is computed, to save memory.
        optimizer: ``sgd`` or ``adamw``.
        lr: Learning rate at the start, or after the warm-up.
        head_lr: Learning rate of the head (classifier, decoder) at the start; null is ``lr``.
        momentum: Momentum of SGD, or the first beta of AdamW (the second is 0.999).
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: L2 penalty of SGD, or decay of AdamW apart from the gradient, on every parameter.
        lr_schedule: What the learning rate does after the warm-up: ``steps`` at the milestones, ``cosine`` towards 0.
        warmup: Fraction of the training in which the learning rate rises linearly, by the epoch.
        milestones: Fractions of the training at which the learning rate is multiplied by ``gamma``.
        gamma: Factor of the learning rate at each milestone.
        loss: ``auto`` (the task's own), ``cross-entropy`` or ``mse``.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).
        freeze_batchnorm: Whether BatchNorm keeps its stored statistics while training.
        augment: ``auto`` (the data set's own), ``none``, ``flip``, ``crop-flip`` (zero padding of 4, random crop,
            horizontal flip), ``resized-crop`` (random area and aspect ratio, horizontal flip).
        augment_options: Options of the augmentation, such as ``min_scale`` of ``resized-crop``.
        mixup: Alpha of mixup; 0 is none. With ``cutmix`` too, each batch draws one of both.
        cutmix: Alpha of CutMix; 0 is none.
        average: Average of the weights with which the training ends: ``none``, ``ema`` (moving, over the steps) or
            ``swa`` (mean over the ends of the last epochs).
        average_options: Options of the average: ``decay`` of ``ema``, ``start`` of ``swa``.
        remedy: Remedy for sparse training: ``none``, ``ham``, ``sign-in`` or ``sparseopt``.
        remedy_options: Options of the remedy: ``alpha`` and ``beta`` of ``ham``, ``every`` of ``sign-in``.
        sanity: What is done to the ticket before it is trained, to see what of it matters: ``none``, ``shuffle`` (the
            mask within each layer), ``reinit`` (other initial weights), ``flip-signs`` (of weights at random).
        dynamic: Whether the mask moves while the network trains: ``none``, ``rigl`` or ``set``.
        dynamic_options: Options of the moving mask: ``every``, ``fraction``, ``until``.
        validation: Fraction of the training images held out for validation, in [0, 1).
        kernel_every: After how many epochs the kernel of the network and its gates are measured; 0 is never.
        kernel_images: Images of each class on which they are, the same in every run.
        engine: What trains: ``dense``; ``sparse``, which computes kept weights alone, on the CPU; ``auto``, what takes
            less time for some steps. A run that was begun stays with its engine.
        precision: Precision of training, as Lightning Fabric names it (``32-true``, ``bf16-mixed``, ``16-mixed``).
        devices: Number of devices, or of processes on the CPU; 0 is as many as ``torchrun`` started.
        strategy: How several devices share the work: ``auto`` (``ddp`` where there are several), ``ddp`` or ``fsdp``.
        sync_batchnorm: Whether BatchNorm uses the statistics of all devices (CUDA only).
        logger: ``none``, ``tensorboard``, ``wandb`` or ``mlflow``; metrics are written to the run's folder in any case.
        fresh: Whether a run in the same folder that had other settings, code or files is deleted; otherwise it is an
            error.
        out: Folder in which the run's own folder is made.
    """

    epochs: NonNegativeInt = 160
    batch_size: PositiveInt = 128
    accumulate: PositiveInt = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.1
    head_lr: Positive | None = None
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 1e-4
    lr_schedule: Literal["steps", "cosine"] = "steps"
    warmup: Fraction = 0.0
    milestones: Moments = (0.5, 0.75)
    gamma: Positive = 0.1
    loss: Literal["auto", "cross-entropy", "mse"] = "auto"
    label_smoothing: Fraction = 0.0
    freeze_batchnorm: bool = False
    augment: str = "auto"
    augment_options: dict[str, Any] = field(default_factory=dict)
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    average: Literal["none", "ema", "swa"] = "none"
    average_options: dict[str, Any] = field(default_factory=dict)
    remedy: Literal["none", "ham", "sign-in", "sparseopt"] = "none"
    remedy_options: dict[str, Any] = field(default_factory=dict)
    sanity: Literal["none", "shuffle", "reinit", "flip-signs"] = "none"
    dynamic: Literal["none", "rigl", "set"] = "none"
    dynamic_options: dict[str, Any] = field(default_factory=dict)
    validation: Fraction = 0.0
    kernel_every: NonNegativeInt = 0
    kernel_images: PositiveInt = 5
    engine: Literal["auto", "dense", "sparse"] = "dense"
    precision: str = "32-true"
    devices: NonNegativeInt = 1
    strategy: str = "auto"
    sync_batchnorm: bool = False
    logger: str = "none"
    fresh: bool = False
    out: str = "runs"


PLACE = ("out", "device", "logger", "fresh", "engine")
_PRUNING_SET = ("rounds", "images_per_class", "pruning_seed")
_PRUNING = (
    *_PRUNING_SET,
    *("sparsity", "allocation", "ignore", "prunable", "start_mask", "min_per_layer", "min_per_output", "budget"),
    *("count", "schedule", "structure", "narrow", "rounding", "sanity", "dynamic", "dynamic_options"),
    *("method_options", "memory", "strict"),
)
WITHOUT_EFFECT = types.MappingProxyType(
    {
        "dense": _PRUNING,
        "small-dense": tuple({*_PRUNING} - {"sparsity", "ignore", "prunable", "method_options"}),
        "imp": _PRUNING_SET,
        "magnitude-after-training": _PRUNING_SET,
    }
)
"""Settings that decide nothing, by method."""


def settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide a run's numbers, as plain values."""
    values = dict(vars(config))
    without = (
        *WITHOUT_EFFECT.get(config.method, ()),
        *(("milestones", "gamma") if config.lr_schedule == "cosine" else ()),
    )
    values.update({name: value for name, value in vars(RunConfig()).items() if name in without})
    if config.method == "dense":
        values["sparsity"] = 0.0
    for name in PLACE:
        del values[name]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def run_name(config: RunConfig) -> str:
    """Name of the run's folder: method, model, data, sparsity, seed, a hash of the settings that are not the default.

    Returns:
        A name of letters, digits, dots, hyphens and underscores; without seed where an earlier version made the folder.

    Examples:
        >>> run_name(RunConfig(method="px", sparsity=0.982, data="cifar10"))
        'px-resnet20-cifar10-s0.982-seed0-33076f1e'
    """
    defaults, values = settings(RunConfig()), settings(config)
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
    parts = (re.sub(r":.*[/\\]", ":", part) for part in (config.method, config.model, config.data))
    readable = "-".join(re.sub(r"[^A-Za-z0-9.-]+", "_", part).strip("_.")[-40:] for part in parts)
    before = f"{readable}-s{values['sparsity']:.6g}"
    earlier = f"{before}-{digest}"
    return earlier if (Path(config.out) / earlier).is_dir() else f"{before}-seed{config.seed}-{digest}"


def read_options(config: RunConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run's method over their defaults; unknown ones are refused."""
    for name in config.method_options:
        check_name(f"option of {config.method!r}", name, known)
    return {**known, **config.method_options}

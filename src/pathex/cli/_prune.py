"""``pathex prune``: the mask of one network, without training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pathex.cli._arguments import parse
from pathex.errors import InvalidInput

if TYPE_CHECKING:
    from pathex import Mask

__all__ = ["execute"]

# Methods defined on train-mode BatchNorm see batches of this size, as pathex run does.
_BATCH = 256


@dataclass(frozen=True)
class PruneConfig:
    """Options of ``pathex prune``.

    Attributes:
        method: Name of a scorer (see ``pathex methods``).
        sparsity: Fraction of the prunable weights removed, in [0, 1).
        model: Name of a model (see ``pathex models``).
        data: Name of a data set (see ``pathex datasets``).
        out: File of the mask.
        rounds: Score-and-threshold rounds; null is the method's published number.
        allocation: ``global``, ``layer``, ``uniform``, ``erk``, or a mapping from weight name to density.
        images_per_class: Images of each class in the pruning set.
        weights: Weights to start from: a file, or a tag of the model's own library; null is random initialization.
        model_options: Options of the model's factory, such as ``width``.
        data_options: Options of the data set, such as ``image_size``.
        method_options: Options of the scorer, such as ``calibration``.
        memory: Memory budget of scoring, in bytes or as text such as ``2GiB``; null is chosen from what is free.
        strict: Whether a layer collapse and other doubts about a scorer are errors.
        seed: Seed of initialization, pruning set and scores.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    method: str = "px"
    sparsity: float = 0.9
    model: str = "resnet20"
    data: str = "fashion-mini"
    out: str = "mask.safetensors"
    rounds: int | None = None
    allocation: str | dict[str, float] = "global"
    images_per_class: int = 10
    weights: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, Any] = field(default_factory=dict)
    memory: str | int | None = None
    strict: bool = False
    seed: int = 0
    device: str = "auto"


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex prune``.

    Raises:
        InvalidInput: If the mask cannot be written where it should be, or a setting cannot be used.
    """
    description = """Prunes one network and writes its mask. With the same settings and seed, the mask is the one that
    pathex run trains."""
    config = parse("prune", PruneConfig, words, description)
    out = Path(config.out)
    if not 0 <= config.sparsity < 1:
        raise InvalidInput(f"sparsity is {config.sparsity!r}; allowed: a number in [0, 1)")
    if out.is_dir() or not out.parent.is_dir():
        raise InvalidInput(f"--out {config.out!r} must name a file in a folder that exists")
    mask, seconds = _prune(config)
    try:
        mask.save(out, method=config.method, model=config.model, data=config.data, seed=str(config.seed))
    except OSError as error:
        raise InvalidInput(f"--out {config.out!r} cannot be written: {error.strerror or error}") from error
    _show(mask, seconds)
    print(out)


def _prune(config: PruneConfig) -> tuple["Mask", float]:
    import time

    import pathex
    from pathex.cli._console import RunDisplay
    from pathex.pruning import default_rounds
    from pathex.tasks import build_classification
    from pathex.train import fabric

    pathex.methods(config.method)  # an unknown name is told before data are loaded
    rounds = config.rounds or default_rounds(config.method)
    task = build_classification(
        config.model,
        config.data,
        seed=config.seed,
        weights=config.weights,
        model_options=config.model_options,
        data_options=config.data_options,
    )
    images = task.pruning_set(config.images_per_class, config.seed)
    model = task.model.to(fabric(config.device).device)
    with RunDisplay() as display:
        display.begin(config.method)

        def on_round(row: dict[str, Any], mask: Any) -> None:
            display("prune_round", {"round": row["round"], "rounds": rounds, "density": mask.density})

        started = time.monotonic()
        result = pathex.prune(
            model,
            config.method,
            sparsity=config.sparsity,
            data=list(zip(images.images.split(_BATCH), images.labels.split(_BATCH), strict=True)),
            rounds=rounds,
            allocation=cast("Any", config.allocation),  # prune names the allowed words itself
            seed=config.seed,
            memory=config.memory,
            strict=config.strict,
            progress=False,
            on_round=on_round,
            **config.method_options,
        )
        return result.mask, time.monotonic() - started


def _show(mask: "Mask", seconds: float) -> None:
    from pathex.cli._console import console, table

    counts = mask.counts()
    layers = table("layer", "kept", "of", "density", right=3)
    for name, (kept, total) in counts.items():
        style = "bold red" if kept == 0 else None
        layers.add_row(name, f"{kept:,}", f"{total:,}", f"{kept / total:.4f}", style=style)
    kept, total = (sum(part) for part in zip(*counts.values(), strict=True))
    layers.add_section()
    layers.add_row("all", f"{kept:,}", f"{total:,}", f"{kept / total:.4f}", style="bold")
    screen = console()
    screen.print(layers)
    screen.print(f"sparsity {1 - kept / total:.6g} in {seconds:.1f} s")

"""``pathex prune``: the mask of one network, without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pathex.cli._arguments import parse
from pathex.errors import InvalidInput
from pathex.runs.config import TicketConfig

if TYPE_CHECKING:
    from pathex import Mask

__all__ = ["execute"]


@dataclass(frozen=True)
class PruneConfig(TicketConfig):
    """Options of ``pathex prune``.

    Attributes:
        out: File of the mask.
    """

    out: str = "mask.safetensors"


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
    from pathex.runs.validation import check_ticket

    out = Path(config.out)
    check_ticket(config)
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
    from pathex.cli._console import RunDisplay
    from pathex.runs.tickets import build_task, find_ticket
    from pathex.train import fabric

    task = build_task(config)
    images = task.pruning_set(config.images_per_class, config.seed)
    task.model.to(fabric(config.device).device)
    with RunDisplay() as display:
        display.begin(config.method)
        result, seconds = find_ticket(config, task, images, lambda known: display("prune_round", known))
        return result.mask, seconds


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

"""``pathex prune``: the mask of one network, without training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pathex.cli.parser import Command, check_file
from pathex.experiments.runs import TicketConfig

if TYPE_CHECKING:
    from torch import nn

    from pathex import Mask


@dataclass(frozen=True)
class PruneConfig(TicketConfig):
    """Options of ``pathex prune``.

    Attributes:
        out: File of the mask.
        format: Form of the file; the last three hold the network's weights too.
    """

    out: str = "mask.safetensors"
    format: Literal["pathex", "tensors", "torch-prune", "compressed-tensors", "zeros"] = "pathex"


def _execute(config: PruneConfig) -> None:
    from pathex.cli.console import console, mask_table
    from pathex.experiments.runs import check_ticket
    from pathex.masks import check_format, write_mask

    out = Path(config.out)
    check_ticket(config)
    check_format(config.format, out)
    check_file(out)
    mask, model, seconds = _prune(config)
    mask.metadata |= {"model": config.model, "data": config.data}
    write_mask(mask, out, config.format, model)
    screen = console()
    screen.print(mask_table(mask))
    screen.print(f"sparsity {mask.sparsity:.6g} in {seconds:.1f} s")
    print(out)


def _prune(config: PruneConfig) -> tuple["Mask", "nn.Module", float]:
    from pathex.cli.console import RunDisplay
    from pathex.experiments.runs import build_task, find_ticket, pruning_seed
    from pathex.train import fabric

    task = build_task(config)
    task.model.to(fabric(config.device).device)
    images = task.pruning_set(config.images_per_class, pruning_seed(config))
    with RunDisplay() as display:
        display.begin(config.method)
        result, seconds = find_ticket(config, task, images, lambda known: display("prune_round", known))
        return result.mask, task.model, seconds


COMMAND = Command(
    "write the mask of one network",
    _execute,
    PruneConfig,
    "Prunes one network and writes its mask. With the same settings and seed, the mask is the one that pathex run "
    "trains.",
)

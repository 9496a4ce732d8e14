"""``pathex prune`` and ``pathex convert``: the mask of one network, and a mask file in the form of another program."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pathex.cli.experiments import HEADINGS
from pathex.cli.parser import Command, writable
from pathex.errors import InvalidInput
from pathex.experiments.runs import TicketConfig

if TYPE_CHECKING:
    from pathex import Mask

Format = Literal["pathex", "tensors", "torch-prune", "sparse", "zeros"]


@dataclass(frozen=True)
class PruneConfig(TicketConfig):
    """Options of ``pathex prune``.

    Attributes:
        out: File of the mask.
        format: Form of the file; the last three hold the network's weights too.
    """

    out: str = "mask.safetensors"
    format: Format = "pathex"


@dataclass(frozen=True)
class ConvertOptions:
    """Options of ``pathex convert``.

    Attributes:
        file: The mask: a file that pathex wrote, tensors of 0 and 1 (also ``.npz``), a state dict with ``weight_mask``
            (``torch.nn.utils.prune``, SynFlow), ``sparse`` weights, or weights whose zeros are the mask.
        out: File to write, safetensors or a torch file by its ending.
        format: Form of the new file.
        weights: Weights for the last three; null takes those that the file itself holds.
    """

    file: str | None = None
    out: str = "mask.safetensors"
    format: Format = "pathex"
    weights: str | None = None


def _prune(config: PruneConfig) -> None:
    from pathex.cli.console import RunDisplay, console
    from pathex.experiments.runs import build_task, check_ticket, find_ticket, pruning_seed
    from pathex.masks import write_mask
    from pathex.pruning import searches
    from pathex.train import fabric

    check_ticket(config)
    out = _checked(config)
    task = build_task(config)
    task.model.to(fabric(config.device).device)
    images = task.pruning_set(config.images_per_class, pruning_seed(config))
    checkpoint = out.with_name(out.name + ".search") if searches(config.method) else None
    with RunDisplay() as display:
        result, seconds = find_ticket(config, task, images, display.of(config.method), checkpoint)
    mask = result.mask
    mask.metadata |= {"model": config.model, "data": config.data}
    write_mask(mask, out, config.format, task.model)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    _show(mask)
    console().print(f"sparsity {mask.sparsity:.6g} in {seconds:.1f} s")
    print(out)


def _convert(options: ConvertOptions) -> None:
    if options.file is None:
        raise InvalidInput("no mask file given, as in pathex convert mask.safetensors --format tensors --out m.pt")
    from pathex.masks import read_mask, read_weights, weights_beside, write_mask

    out = _checked(options)
    if out.resolve() == Path(options.file).resolve():
        raise InvalidInput(f"--out {options.out!r} would overwrite the mask file; name another one")
    mask = read_mask(options.file)
    if mask.kept == mask.total:
        raise InvalidInput(f"nothing is pruned in {options.file}: there is no mask to convert")
    weights = weights_beside(options.file) if options.weights is None else read_weights(Path(options.weights))
    write_mask(mask, out, options.format, weights)
    _show(mask)
    print(out)


def _checked(options: PruneConfig | ConvertOptions) -> Path:
    """The file to write, which can have this format and stands in a folder that is there."""
    from pathex.masks import check_format

    check_format(options.format, Path(options.out))
    return writable(options.out)


def _show(mask: "Mask") -> None:
    """Print what a mask keeps of each layer and of all."""
    from pathex.cli.console import show, table

    layers = table("layer", "kept", "of", "density", right=3)
    for name, (kept, total) in mask.counts().items():
        style = "bold red" if kept == 0 else None
        layers.add_row(name, f"{kept:,}", f"{total:,}", f"{kept / total:.4f}", style=style)
    layers.add_section()
    layers.add_row("all", f"{mask.kept:,}", f"{mask.total:,}", f"{mask.density:.4f}", style="bold")
    show(layers)


PRUNE = Command(
    "write the mask of one network",
    PruneConfig,
    _prune,
    "Prunes one network and writes its mask. With the same settings and seed, the mask is the one that pathex run "
    "trains.",
    example="pathex prune --method px --sparsity 0.9 --model resnet20 --data fashion-mini --out mask.safetensors",
    headings=HEADINGS,
)
CONVERT = Command(
    "a mask file in another form",
    ConvertOptions,
    _convert,
    "Reads a mask file of any known form and writes it in another one; no bit changes.",
    positional=("file", "?", "The mask file, in any form that is known."),
)

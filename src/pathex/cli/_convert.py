"""``pathex convert``: a mask file in the form of another program."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathex.cli._arguments import parse
from pathex.errors import InvalidInput

__all__ = ["execute"]


@dataclass(frozen=True)
class ConvertConfig:
    """Options of ``pathex convert``.

    Attributes:
        file: The mask: a file that pathex wrote, tensors of 0 and 1, the state dict of a model pruned with
            ``torch.nn.utils.prune``, bitmasks of compressed-tensors, or weights whose zeros are the mask.
        out: File to write, safetensors or a torch file by its ending.
        format: ``pathex``, ``tensors``, ``torch-prune``, ``compressed-tensors`` or ``zeros``.
        weights: Weights for the last three; null takes those that the file itself holds.
    """

    file: str | None = None
    out: str = "mask.safetensors"
    format: str = "pathex"
    weights: str | None = None


def execute(words: Sequence[str]) -> None:
    """Carries out the command.

    Args:
        words: What follows ``pathex convert``.

    Raises:
        InvalidInput: If no file is named or the result cannot be written where it should be.
    """
    description = "Reads a mask file of any known form and writes it in another one; no bit changes."
    config = parse("convert", ConvertConfig, words, description, positional=("file", 1))
    if config.file is None:
        raise InvalidInput(
            "no mask file given; for instance: pathex convert mask.safetensors --format tensors --out m.pt"
        )
    from pathex.cli._console import console, mask_table
    from pathex.mask_files import check_format, read_mask, weights_beside, write_mask
    from pathex.models._weights import read_weights

    out = Path(config.out)
    check_format(config.format, out)
    if out.is_dir() or not out.parent.is_dir():
        raise InvalidInput(f"--out {config.out!r} must name a file in a folder that exists")
    if out.resolve() == Path(config.file).resolve():
        raise InvalidInput(f"--out {config.out!r} would overwrite the mask file; name another one")
    mask = read_mask(config.file)
    weights = weights_beside(config.file) if config.weights is None else read_weights(Path(config.weights))
    write_mask(mask, out, config.format, weights)
    console().print(mask_table(mask))
    print(out)

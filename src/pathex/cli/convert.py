"""``pathex convert``: a mask file in the form of another program."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pathex.cli.parser import Command, check_file
from pathex.errors import InvalidInput


@dataclass(frozen=True)
class ConvertOptions:
    """Options of ``pathex convert``.

    Attributes:
        file: The mask: a file that pathex wrote, tensors of 0 and 1, the state dict of a model pruned with
            ``torch.nn.utils.prune``, bitmasks of compressed-tensors, or weights whose zeros are the mask.
        out: File to write, safetensors or a torch file by its ending.
        format: Form of the new file.
        weights: Weights for the last three; null takes those that the file itself holds.
    """

    file: str | None = None
    out: str = "mask.safetensors"
    format: Literal["pathex", "tensors", "torch-prune", "compressed-tensors", "zeros"] = "pathex"
    weights: str | None = None


def _execute(options: ConvertOptions) -> None:
    if options.file is None:
        raise InvalidInput(
            "no mask file given; for instance: pathex convert mask.safetensors --format tensors --out m.pt"
        )
    from pathex.cli.console import console, mask_table
    from pathex.masks import check_format, read_mask, read_weights, weights_beside, write_mask

    out = Path(options.out)
    check_format(options.format, out)
    check_file(out)
    if out.resolve() == Path(options.file).resolve():
        raise InvalidInput(f"--out {options.out!r} would overwrite the mask file; name another one")
    mask = read_mask(options.file)
    weights = weights_beside(options.file) if options.weights is None else read_weights(Path(options.weights))
    write_mask(mask, out, options.format, weights)
    console().print(mask_table(mask))
    print(out)


COMMAND = Command(
    "a mask file in another form",
    _execute,
    ConvertOptions,
    "Reads a mask file of any known form and writes it in another one; no bit changes.",
    positional=("file", "?", "The mask file, in any form that is known."),
)

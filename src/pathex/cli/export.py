"""``pathex export``: a network as a file for another program."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pathex.cli.network import NetworkOptions, load_network
from pathex.cli.parser import Command, writable
from pathex.errors import InvalidInput


@dataclass(frozen=True)
class ExportOptions(NetworkOptions):
    """Options of ``pathex export``.

    Attributes:
        format: ``onnx``, ``pt2`` (PyTorch's exported program) or ``safetensors`` (weights for pathex).
        compact: Whether channels that the mask leaves without use are removed first.
        out: File to write; null is ``network`` with the ending of the format.
    """

    format: Literal["onnx", "pt2", "safetensors"] = "onnx"
    compact: bool = True
    out: str | None = None


def _execute(options: ExportOptions) -> None:
    name = options.out or f"network.{options.format}"
    if Path(name).suffix != f".{options.format}":
        raise InvalidInput(f"--out {name!r} must end in .{options.format}, the format")
    out = writable(name)
    network, example = load_network(options, "export")
    from pathex.cli.console import console
    from pathex.compaction import compact, export, save
    from pathex.masks import formats, write_mask

    mask = formats.from_zeros(network)
    small = compact(network, mask, example) if options.compact else network
    if options.format != "safetensors":
        export(small, out, example)
    elif options.compact:
        save(small, out)
    else:
        write_mask(mask, out, "sparse", network)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (network, small))
    console().print(f"{before:,} parameters, {after:,} in the file, {out.stat().st_size:,} bytes")
    print(out)


COMMAND = Command(
    "a network as ONNX, exported program or safetensors",
    _execute,
    ExportOptions,
    "Writes the trained network of a run, or a network by name with its weights and mask, for any number of images. "
    "ONNX is checked by onnxruntime, an exported program by PyTorch, before the file is there.",
    positional=("run", "?", "Folder of a finished run."),
)

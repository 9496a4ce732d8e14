"""``pathex bench`` and ``pathex export``: what a network costs on this machine, and a network as a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pathex.cli.parser import Command, writable
from pathex.errors import InvalidInput
from pathex.experiments.runs import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkOptions:
    """Which network.

    Attributes:
        run: Folder of a finished run, whose trained network with its mask it is; null takes ``model``.
        model: Name of a model (see ``pathex models``); with a run only where its network is ``package.module:factory``.
        model_options: Options of the model's factory, such as ``width``.
        num_classes: Outputs of the model.
        in_channels: Channels of its images.
        weights: Its weights: a file, ``imagenet`` or another tag of the model's own library; null draws them.
        mask: Mask file in any form that ``pathex convert`` reads; null: what is zero is removed.
        image_size: Side of the images in pixels; null is the run's.
    """

    run: str | None = None
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    num_classes: PositiveInt = 10
    in_channels: PositiveInt = 3
    weights: str | None = None
    mask: str | None = None
    image_size: PositiveInt | None = None


def load_network(options: NetworkOptions, command: str) -> "tuple[nn.Module, Tensor]":
    """The network in eval mode, the zeros of its mask in place, and an example of one image (1, C, H, W)."""
    import torch

    from pathex import models
    from pathex.experiments.runs import load_run
    from pathex.masks import make_permanent, read_mask

    if options.run is None and options.model is None:
        raise InvalidInput(
            f"no network given; for instance: pathex {command} RUN-FOLDER, or pathex {command} --model resnet20"
        )
    size, channels = options.image_size, options.in_channels
    if options.run is not None:
        for name in ("weights", "mask", "model_options", "num_classes", "in_channels"):
            if getattr(options, name) != getattr(type(options)(), name):
                raise InvalidInput(f"--{name.replace('_', '-')} is given beside a run, which has its own; leave it out")
        foreign = options.model is not None
        network = load_run(options.run, partial(models.create, options.model) if foreign else None)  # type: ignore[arg-type]
        preprocessing: Any = network.preprocessing
        size, channels = size or preprocessing.size, len(preprocessing.mean)
    else:
        network = models.create(
            str(options.model), options.num_classes, channels, weights=options.weights, **options.model_options
        )
        if options.mask is not None:
            make_permanent(network, read_mask(Path(options.mask), network))
    if size is None:
        raise InvalidInput("--image-size is not given; allowed: the side of the images in pixels")
    example = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    return network.float().eval(), example


@dataclass(frozen=True)
class BenchOptions(NetworkOptions):
    """Options of ``pathex bench``.

    Attributes:
        batch_size: Images of a batch; several are measured one after the other.
        threads: Threads of each engine; several are measured one after the other.
        rounds: Turns that each engine has; the table has medians and quartiles.
        out: Folder of the tables (CSV) and the picture.
    """

    batch_size: tuple[int, ...] | int = (1, 32)
    threads: tuple[int, ...] | int = 1
    rounds: PositiveInt = 7
    out: str = "bench"


def _bench(options: BenchOptions) -> None:
    batches, threads = _several("--batch-size", options.batch_size), _several("--threads", options.threads)
    network, example = load_network(options, "bench")
    import pandas as pd
    import torch

    from pathex.cli.console import RunDisplay, show, table
    from pathex.experiments.measure import ENGINES, draw, facts, latency, layers

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    sizes = facts(network, example)
    shown = table("", "dense", "with the mask", right=2)
    for name, dense, kept in (
        ("parameters", "parameters", "kept"),
        ("multiply-adds an image", "multiply_adds", "kept_multiply_adds"),
        ("bytes as safetensors", "bytes", "sparse_bytes"),
        ("bytes of activations an image", "activation_bytes", ""),
    ):
        shown.add_row(name, f"{sizes[dense]:,}", f"{sizes[kept]:,}" if kept else "")
    show(shown)
    images = torch.randn(max(batches), *example.shape[1:], generator=torch.Generator().manual_seed(0))
    with RunDisplay(lines=False) as display:
        bar = display.add_task("turns", total=len(batches) * len(threads) * len(ENGINES) * options.rounds, note="")
        how: dict[str, Any] = {"batch_sizes": batches, "threads": threads, "rounds": options.rounds}
        rows = latency(network, images, **how, on_turn=lambda: display.advance(bar))
    places = layers(network, example, threads[0])
    _show(rows, places)
    pd.DataFrame([{**row, **sizes} for row in rows]).to_csv(out / "latency.csv", index=False, float_format="%.5g")
    pd.DataFrame(places).to_csv(out / "layers.csv", index=False, float_format="%.5g")
    share = sizes["kept_multiply_adds"] / sizes["multiply_adds"]
    draw(rows, out / "latency.png", f"{options.run or options.model}: {100 * share:.3g} % of the multiply-adds")
    print(out)


def _several(name: str, given: Sequence[int] | int) -> tuple[int, ...]:
    values = (given,) if isinstance(given, int) else tuple(given)
    if not values or min(values) < 1:
        raise InvalidInput(f"{name} is {given!r}; allowed: whole numbers from 1")
    return values


def _show(rows: Sequence[Mapping[str, Any]], places: Sequence[Mapping[str, Any]]) -> None:
    from pathex.cli.console import console, show, table
    from pathex.experiments.measure import fastest_dense

    shown = table("engine", "batch", "threads", "milliseconds", "quartiles", "times faster", "difference", right=6)
    for row in rows:
        about = row["engine"], str(row["batch_size"]), str(row["threads"])
        if "milliseconds" in row:
            quartiles = f"{row['low']:.3g} to {row['high']:.3g}"
            faster = f"{fastest_dense(rows, row) / row['milliseconds']:.2f}"
            shown.add_row(*about, f"{row['milliseconds']:.3g}", quartiles, faster, f"{row['difference']:.0e}")
        else:
            shown.add_row(*about, "", row["note"], "", "")
    show(shown)
    console().print("times faster: than the fastest engine that computes every weight, torch.compile not counted\n")
    slowest = table("layer (dense, torch, one image)", "kind", "kept", "of", "milliseconds", "share", right=4)
    for place in sorted(places, key=lambda place: -place["milliseconds"])[:10]:
        numbers = f"{place['kept']:,}", f"{place['weights']:,}", f"{place['milliseconds']:.3g}", f"{place['share']:.1%}"
        slowest.add_row(place["layer"], place["kind"], *numbers)
    show(slowest)


BENCH = Command(
    "what a network costs on this machine",
    BenchOptions,
    _bench,
    "Measures the trained network of a run, or a network by name with its weights and mask: parameters, bytes, "
    "multiply-adds, and milliseconds in torch, onnxruntime, OpenVINO, compacted and with only the kept weights "
    "computed, in turns. Let nothing else run meanwhile.",
    positional=("run", "?", "Folder of a finished run."),
)


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


def _export(options: ExportOptions) -> None:
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


EXPORT = Command(
    "a network as ONNX, exported program or safetensors",
    ExportOptions,
    _export,
    "Writes the trained network of a run, or a network by name with its weights and mask, for any number of images. "
    "ONNX is checked by onnxruntime, an exported program by PyTorch, before the file is there.",
    positional=("run", "?", "Folder of a finished run."),
)

"""``pathex bench``: what a network costs on this machine, in every engine that is installed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathex.cli.network import NetworkOptions, load_network
from pathex.cli.parser import Command
from pathex.errors import InvalidInput
from pathex.experiments.runs import PositiveInt


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


def _execute(options: BenchOptions) -> None:
    batches, threads = _several("--batch-size", options.batch_size), _several("--threads", options.threads)
    network, example = load_network(options, "bench")
    import pandas as pd
    import torch

    from pathex.cli.console import RunDisplay, console, table
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
    console().print(shown)
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
    from pathex.cli.console import console, table
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
    console().print(shown)
    console().print("times faster: than the fastest engine that computes every weight, torch.compile not counted\n")
    slowest = table("layer (dense, torch, one image)", "kind", "kept", "of", "milliseconds", "share", right=4)
    for place in sorted(places, key=lambda place: -place["milliseconds"])[:10]:
        numbers = f"{place['kept']:,}", f"{place['weights']:,}", f"{place['milliseconds']:.3g}", f"{place['share']:.1%}"
        slowest.add_row(place["layer"], place["kind"], *numbers)
    console().print(slowest)


COMMAND = Command(
    "what a network costs on this machine",
    _execute,
    BenchOptions,
    "Measures the trained network of a run, or a network by name with its weights and mask: parameters, bytes, "
    "multiply-adds, and milliseconds in torch, onnxruntime, OpenVINO, compacted and with only the kept weights "
    "computed, in turns. Let nothing else run meanwhile.",
    positional=("run", "?", "Folder of a finished run."),
)

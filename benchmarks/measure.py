"""What benchmarks share: clocks, peaks of memory, fresh processes, rows with their environment, plots."""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from altair import LayerChart
from torch import Tensor, nn

from pathex import figures, models
from pathex.distributed import Child, stop
from pathex.errors import PathexError
from pathex.experiments.measure import quartiles
from pathex.experiments.runs import RunConfig, environment
from pathex.experiments.sweep import SweepConfig, create, plan, sweep
from pathex.figures import GREY, Style, dots
from pathex.masks import replacing

__all__ = [
    "ERROR",
    "MIB",
    "CaseFailed",
    "Process",
    "Row",
    "Table",
    "arguments",
    "bars",
    "carry_out",
    "command",
    "now",
    "paired",
    "peak_memory",
    "problem",
    "quartiles",
    "save",
    "study",
    "tensor_peak",
]

MIB = 2**20
ERROR = "error"  # column of a row whose case failed: why, in one line
Row = dict[str, Any]
_LONGEST = 300


# -- time and memory ---------------------------------------------------------------------------------------------------


def now(device: torch.device) -> float:
    """Seconds of a clock, once all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def tensor_peak(device: torch.device, work: Callable[[], object]) -> int:
    """Most bytes of tensors alive at a time, above what was there before.

    On the CPU the work runs under PyTorch's profiler, which is no time to measure.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


@contextmanager
def peak_memory(row: Row) -> Iterator[None]:
    """Write ``resident_mib`` into a row: the peak of resident memory in the block above what was resident before."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():  # Linux tells
        yield
        return
    reset.write_text("5")
    start = _resident("VmRSS")
    yield
    row["resident_mib"] = round((_resident("VmHWM") - start) / 1024, 1)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


# -- networks and processes --------------------------------------------------------------------------------------------


def problem(
    name: str, images: int, classes: int, seed: int, device: torch.device, size: int = 0
) -> tuple[nn.Module, Tensor, Tensor]:
    """A network at its own initialization, normal numbers in place of images ``(N, 3, H, W)``, and labels in turn."""
    size = size or (224 if ":" in name else 64 if name.endswith("_tiny") else 32)
    # Vision transformers hold an embedding for each place of the image.
    options = {"img_size": size} if name.startswith("timm:vit") else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = models.create(name, num_classes=classes, **options)
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return model.to(device), x.to(device), (torch.arange(images) % classes).to(device)


class CaseFailed(Exception):
    """A case whose process ended with an error; the message is its last line."""


class Process:
    """A case in a fresh process, so that it finds nothing that another one left behind.

    Args:
        work: A function of a module, called as ``work(connection, *arguments)``.
        *arguments: What can be pickled.
        threads: Threads of PyTorch.
    """

    def __init__(self, work: Callable[..., object], *arguments: Any, threads: int) -> None:
        self._child = Child(_serve, work, arguments, threads, environment={"KINETO_LOG_LEVEL": "99"})

    def tell(self, message: object = None) -> None:
        """Say something to the process."""
        self._child.connection.send(message)

    def answer(self) -> Any:
        """What the process says; a :class:`CaseFailed` if it failed or was killed."""
        try:
            message = self._child.connection.recv()
        except EOFError:
            raise CaseFailed(f"its process {self._child.ending()}") from None
        if isinstance(message, CaseFailed):
            raise message
        return message

    def end(self) -> None:
        """End the process, whatever it does."""
        stop([self._child])


def _serve(connection: Connection, work: Callable[..., object], arguments: tuple[Any, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        work(connection, *arguments)
    except Exception as error:
        connection.send(CaseFailed(" ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]))


# -- rows --------------------------------------------------------------------------------------------------------------


class Table:
    """Rows in a csv file, settings and environment in the json file beside it; each row is written as it comes.

    Args:
        path: The csv file.
        settings: What the rows were made with.
        device: Where.
        threads: Threads of each process.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], device: str = "cpu", threads: int = 1) -> None:
        self.path, self.rows = path, list[Row]()
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "settings": settings,
            "load_before": os.getloadavg() if hasattr(os, "getloadavg") else None,
            "environment": {**environment(torch.device(device)), "threads": threads, "cpu": _cpu()},
        }
        with replacing(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(about, indent=2, default=str) + "\n", encoding="utf-8")

    def add(self, row: Row) -> None:
        """Write and print a row."""
        self.rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        self.write(self.frame(), self.path)

    def frame(self) -> pd.DataFrame:
        """All rows; whole numbers stay whole in a column that not every row has."""
        return pd.DataFrame(self.rows).convert_dtypes()

    @staticmethod
    def write(frame: pd.DataFrame, path: Path) -> None:
        """Write a table in one step."""
        with replacing(path) as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")


def _cpu() -> str | None:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def arguments(doc: str | None, rows: str) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks; rows go into ``benchmarks/rows/`` unless told otherwise."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rows" / f"{rows}.csv", help="file of rows")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def command(main: Callable[[], int]) -> int:
    """Carry out a benchmark as a command: bad input is one line and status 2."""
    try:
        return main()
    except PathexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def study(config: SweepConfig) -> list[RunConfig]:
    """Carry out a sweep: its runs in the order of its list, or none if one failed, which is said."""
    planned = plan(config)
    result = sweep(planned.runs, Path(config.out), lambda: create(config, planned.runs.values()))
    for name, error in result.failed.items():
        print(f"{name} failed: {error}")
    listed = () if result.failed else config.list
    return [run for entry in listed for run in plan(replace(config, list=(entry,))).runs.values()]


# -- plots -------------------------------------------------------------------------------------------------------------


def carry_out(
    table: "Table",
    work: Callable[[Any], Row],
    cases: Sequence[Any],
    jobs: int,
    summary: Callable[[pd.DataFrame], pd.DataFrame],
) -> int:
    """Rows of cases by several processes, and their summary beside them; 1 if a case failed."""
    failed = 0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(work, case): case for case in cases}
        for future in as_completed(futures):
            if (error := future.exception()) is None:
                table.add(future.result())
            else:
                failed += 1
                print(f"{futures[future]} failed: {error!r}", flush=True)
    if table.rows:
        means = summary(table.frame())
        table.write(means, table.path.with_name(f"{table.path.stem}-summary.csv"))
        print(means.to_string(index=False))
    return int(failed > 0)


def paired(rows: pd.DataFrame, level: str, columns: Sequence[str]) -> pd.DataFrame:
    """Means over seeds by level and method; accuracy also minus that of `px`, in pairs of a seed, with errors."""
    reference = rows.loc[rows["method"] == "px", [level, "seed", "accuracy"]]
    rows = rows.merge(reference, how="left", on=[level, "seed"], suffixes=("", "_px"))
    rows["minus_px"] = (rows["accuracy"] - rows["accuracy_px"]).where(rows["method"] != "px")
    groups = rows.groupby([level, "method"], sort=False)
    errors = groups[["accuracy", "minus_px"]].sem().add_suffix("_error")
    means = groups[["accuracy", "minus_px", *columns]].mean().join(errors).assign(n=groups["seed"].count())
    return means.reset_index().sort_values(level, kind="stable").round(4)


def bars(rows: pd.DataFrame, labels: str, column: str, title: str, errors: Sequence[str] = ()) -> LayerChart:
    """A dot for each row, with its number and the range between two other columns; the first row is grey."""
    columns = dict(zip(("mean", "low", "high"), (column, *errors), strict=False))
    table = pd.DataFrame({name: rows[of].astype(float) for name, of in columns.items()}).assign(series=rows[labels])
    look = {name: Style("#0072B2" if number else GREY) for number, name in enumerate(table["series"])}
    frame = (0.0, 1.05 * table[[*columns]].max().max())
    return dots(table.dropna(subset="mean"), x_title=title, look=look, frame=frame, number=".3~g")


def save(path: Path, *charts: LayerChart, across: bool = False) -> None:
    """Write charts as PNG and SVG beside the rows."""
    for form in ("png", "svg"):
        figures.save(path.with_suffix(f".{form}"), *charts, across=across)

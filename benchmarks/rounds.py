"""Seconds and peak memory of the rounds of each scorer, against the plain implementation in `plain_px.py`.

    python benchmarks/rounds.py                                # 100 rounds on ResNet-20, 100 images, every method
    python benchmarks/rounds.py --methods px px:redraw=true --rounds 20 --out rows.csv

Each case runs in a fresh process. The processes take turns of a few rounds, one at a time, so that whatever else the
machine does falls on all of them alike. Written are one row per case (csv) and the environment beside it (json).
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from plain_px import plain_px
from torch import Tensor, nn

import pathex
from pathex import scores
from pathex.errors import PathexError, PathexWarning
from pathex.runs.environment import environment

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "plain"
VARIANTS = ("px:redraw=true", "px:calibration=running")
_TURN = 5  # rounds
_RATIOS = {"time_ratio": "round_seconds", "cpu_ratio": "cpu_seconds", "memory_ratio": "tensor_mib"}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all cases of a run share.

    Attributes:
        model: Name of a model of `pathex.models`.
        images: Images of the pruning set, ``(3, 32, 32)`` each, of ten classes.
        rounds: Score-and-keep rounds.
        sparsity: Fraction of the prunable weights removed, in [0, 1).
        device: ``cpu`` or ``cuda``.
        threads: Threads of PyTorch.
        seed: Seed of weights and images.
    """

    model: str
    images: int
    rounds: int
    sparsity: float
    device: str
    threads: int
    seed: int = 0


def problem(settings: Settings) -> tuple[nn.Module, Tensor, Tensor]:
    """Network and pruning set, drawn from the seed.

    Args:
        settings: Settings of the run.

    Returns:
        Model, images ``(N, 3, 32, 32)`` and labels ``(N,)``.
    """
    torch.manual_seed(settings.seed)
    model = pathex.models.create(settings.model).to(settings.device)
    images = torch.randn(settings.images, 3, 32, 32)
    return model, images.to(settings.device), (torch.arange(settings.images) % 10).to(settings.device)


def parse_case(label: str) -> tuple[str, dict[str, Any]]:
    """Method and options of a label such as ``px:redraw=true,calibration=running``; checked.

    Args:
        label: The label; option values are read as YAML.

    Returns:
        Name and options.
    """
    name, _, text = label.partition(":")
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    options = {key: yaml.safe_load(value) for key, _, value in pairs}
    if name != PLAIN or options:
        scores.find(name).check(options)
    return name, options


# -- in the process of a case ------------------------------------------------------------------------------------------


class Pace:
    """Times rounds and hands over to the next case after each turn.

    Args:
        pipe: Connection to the process that gives the turns.
        settings: Settings of the run.
    """

    def __init__(self, pipe: Connection, settings: Settings) -> None:
        self.pipe = pipe
        self.settings = settings
        self.seconds: list[float] = []
        self.wait()

    def start(self) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def wait(self) -> None:
        """Wait for the next turn."""
        self.pipe.send(None)
        self.pipe.recv()
        self.start()

    def elapsed(self) -> float:
        """Seconds since the last round or the start of the turn, all work on the device done.

        Returns:
            Seconds.
        """
        if self.settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - self.began

    def __call__(self, *_: object) -> None:
        """Called after a round."""
        self.seconds.append(self.elapsed())
        self.began = time.perf_counter()
        if len(self.seconds) % _TURN == 0 and len(self.seconds) < self.settings.rounds:
            self.wait()


def measure(pipe: Connection, label: str, settings: Settings) -> None:
    """Prune in this process, at the pace that the other end of the pipe sets, and send the row.

    Args:
        pipe: Connection to the process that gives the turns.
        label: The case.
        settings: Settings of the run.
    """
    torch.set_num_threads(settings.threads)
    warnings.simplefilter("ignore", PathexWarning)
    name, options = parse_case(label)
    model, images, labels = problem(settings)

    def keep(count: int, rounds: int, on_round: Pace | None = None) -> int:
        common: dict[str, Any] = {"sparsity": settings.sparsity, "rounds": rounds, "on_round": on_round}
        if name == PLAIN:
            return sum(int(entry.sum()) for entry in plain_px(model, images[:count], **common).values())
        data = [(images[:count], labels[:count])]
        return pathex.prune(model, name, data=data, progress=False, **common, **options).mask.kept

    keep(2, 1)  # what is loaded and set up on first use is not what is measured
    pace = Pace(pipe, settings)
    on_device = torch.cuda.memory_allocated() if settings.device == "cuda" else 0
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before, cpu = _start_of_peak(), time.process_time()
    pace.start()
    kept = keep(settings.images, settings.rounds, pace)
    total, cpu = sum(pace.seconds) + pace.elapsed(), time.process_time() - cpu
    low, middle, high = _quartiles(pace.seconds)
    row = {"method": label, "rounds": settings.rounds, "seconds": round(total, 5), "cpu_seconds": round(cpu, 5)}
    row |= {"round_seconds": round(middle, 5), "round_low": round(low, 5), "round_high": round(high, 5)}
    row["resident_mib"] = None if before is None else round((_resident("VmHWM") - before) / 1024, 1)
    if settings.device == "cuda":
        row["tensor_mib"] = round((torch.cuda.max_memory_allocated() - on_device) / 2**20, 1)
    else:
        row["tensor_mib"] = round(_tensor_peak(lambda: keep(settings.images, 1)) / 2**20, 1)
    pipe.send({**row, "kept": kept})


def _tensor_peak(work: Callable[[], object]) -> int:
    """Most bytes of CPU tensors alive at a time; the count that PyTorch keeps for CUDA but not for the CPU."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def _quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    if len(seconds) < 2:
        return seconds[0], seconds[0], seconds[0]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high


def _resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in KiB."""
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))


def _start_of_peak() -> int | None:
    """Let the peak start from what is resident now, in KiB; None where the system does not tell."""
    if not _RESET.exists():
        return None
    _RESET.write_text("5")
    return _resident("VmRSS")


# -- in the process that gives the turns -------------------------------------------------------------------------------


def take_turns(labels: Sequence[str], settings: Settings) -> list[dict[str, Any]]:
    """Run every case in its own process, one at a time.

    Args:
        labels: The cases.
        settings: Settings of the run.

    Returns:
        Rows of the cases that ended well, in order; the traceback of another one is on its standard error.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for label in labels:
        pipes[label], theirs = context.Pipe()
        context.Process(target=measure, args=(theirs, label, settings), daemon=True).start()
        theirs.close()  # a dead process then reads as the end of its pipe
    waiting = {label: pipe for label, pipe in pipes.items() if _answers(pipe)}
    rows: dict[str, dict[str, Any]] = {}
    turns = -(-settings.rounds // _TURN)
    for turn in range(1, turns + 1):
        print(f"turn {turn} of {turns}: {len(waiting)} cases", file=sys.stderr, flush=True)
        for label, pipe in list(waiting.items()):
            pipe.send(None)
            try:
                row = pipe.recv()
            except EOFError:
                del waiting[label]
                continue
            if row is not None:
                rows[label] = row
    return [rows[label] for label in labels if label in rows]


def _answers(pipe: Connection) -> bool:
    try:
        pipe.recv()
    except EOFError:
        return False
    return True


def table(rows: Sequence[dict[str, Any]]) -> "pd.DataFrame":
    """Rows with their ratios to the plain implementation: median round, processor time, peak of tensors.

    Args:
        rows: Rows of one run.

    Returns:
        The table; without a row of the plain implementation the ratios are empty.
    """
    import pandas as pd  # the processes of the cases start without it

    frame = pd.DataFrame(rows)
    plain = frame[frame["method"] == PLAIN]
    for ratio, column in _RATIOS.items():
        frame[ratio] = (frame[column] / plain[column].iloc[0]).round(3) if len(plain) else float("nan")
    return frame


def write(out: Path, frame: "pd.DataFrame", about: dict[str, Any]) -> None:
    """Write rows and environment; each file appears whole or not at all.

    Args:
        out: File of the rows; the environment gets the ending ``.json``.
        frame: The rows.
        about: The environment.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    files = {out: frame.to_csv(index=False), out.with_suffix(".json"): json.dumps(about, indent=2) + "\n"}
    for path, text in files.items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def _about(settings: Settings, load_before: tuple[float, float, float]) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "settings": dataclasses.asdict(settings),
        "turn_rounds": _TURN,
        "cpu": cpu,
        "load_before": load_before,
        "environment": {**environment(torch.device(settings.device)), "threads": settings.threads},
    }


def _arguments(argv: Sequence[str] | None) -> tuple[Settings, list[str], Path]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--sparsity", type=float, default=0.982)
    parser.add_argument("--methods", nargs="+", help="NAME or NAME:OPTION=VALUE,... (default: all, and variants of px)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="default: benchmarks/rows/rounds-MODEL-DEVICE.csv")
    given = parser.parse_args(argv)
    labels = list(dict.fromkeys([PLAIN, *(given.methods or [*pathex.methods(), *VARIANTS])]))
    out = given.out or Path(__file__).parent / "rows" / f"rounds-{given.model.replace(':', '-')}-{given.device}.csv"
    settings = Settings(given.model, given.images, given.rounds, given.sparsity, given.device, given.threads)
    try:
        if settings.rounds < 1 or settings.images < 1 or not 0 <= settings.sparsity < 1:
            parser.error("--rounds and --images must be at least 1, --sparsity in [0, 1)")
        if settings.device == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: PyTorch sees no CUDA device")
        pathex.models.create(settings.model)
        for label in labels:
            parse_case(label)
    except PathexError as error:
        parser.error(str(error))
    return settings, labels, out


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write.

    Args:
        argv: Arguments; None is those of the command line.

    Returns:
        0, or 1 if a case failed.
    """
    settings, labels, out = _arguments(argv)
    load_before = os.getloadavg()
    rows = take_turns(labels, settings)
    if rows:
        frame = table(rows)
        write(out, frame, _about(settings, load_before))
        print(frame.to_string(index=False), f"\nwritten: {out}")
    failed = [label for label in labels if label not in {row["method"] for row in rows}]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""``pathex run``, ``sweep``, ``report`` and ``demo``: one run, many, what they say, and all of it at once."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pathex.cli.parser import Command
from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig, run_name
from pathex.experiments.sweep import SweepConfig


def _threads_are_free() -> bool:
    """Whether the number of threads is nobody's choice, by a variable or in a process that has used torch before."""
    if "torch" in sys.modules or os.environ.keys() & {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}:
        return False
    # A thread that spins while it waits takes the processor from those it waits for, where other programs run too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return True


def _run(config: RunConfig) -> None:
    free = _threads_are_free()
    from pathex.cli.console import RunDisplay
    from pathex.distributed import is_first_process
    from pathex.experiments.runs import run, settle_threads

    if free:
        settle_threads(config)
    with RunDisplay() as display:
        result = run(config, on_event=display.of(config.method))
    if is_first_process():
        print(result.folder)


HEADINGS = MappingProxyType(
    {"method": "experiment", "rounds": "pruning", "images_per_class": "pruning set, weights and options"}
    | {"memory": "scoring, seed and device", "epochs": "training", "precision": "precision, processes and folder"}
)
"""Headings of the options of one network."""

RUN = Command(
    "prune, train and evaluate one network",
    RunConfig,
    _run,
    "Prunes one network, trains it and measures it on the test images. Prints the run folder last. The same command "
    "again resumes what was stopped, or says done.",
    resumes=True,
    example="pathex run --method px --sparsity 0.982 --model resnet20 --data cifar10 --seed 0",
    headings=HEADINGS,
)


def _sweep(config: SweepConfig) -> int:
    from pathex.cli.console import SweepDisplay
    from pathex.experiments.sweep import create, plan, sweep

    planned = plan(config)
    with SweepDisplay(planned) as display:
        result = sweep(
            planned.runs,
            Path(config.out),
            lambda: create(config, planned.runs.values()),
            retries=config.retries,
            on_event=display,
        )
    display.summarise(result)
    print(result.table)
    return 1 if result.failed else 0


SWEEP = Command(
    "many runs from one file, here or on a cluster, and one table of their results",
    SweepConfig,
    _sweep,
    "Carries out all runs of a sweep file, several at a time, and writes one table of their results. Runs that are "
    "done are skipped, runs that were stopped go on, runs that failed are tried again and listed at the end.",
    resumes=True,
)


@dataclass(frozen=True)
class ReportOptions:
    """Options of ``pathex report``.

    Attributes:
        runs: Run folders, or folders that contain run folders at any depth.
        out: Folder of the report.
        published: ``auto`` draws published curves behind the runs of a published setting, ``none`` never does.
        x: What the metric is drawn against.
        split: Of which images the metric is; ``validation`` are those held out of the training images, to choose by.
    """

    runs: tuple[str, ...] = ()
    out: str = "report"
    published: Literal["auto", "none"] = "auto"
    x: Literal["sparsity", "parameters", "multiply-adds"] = "sparsity"
    split: Literal["test", "validation"] = "test"


def _report(options: ReportOptions) -> None:
    if not options.runs:
        raise InvalidInput("no run folder given; for instance: pathex report runs --out report")
    from pathex.experiments.report import build

    folders = [Path(folder) for folder in options.runs]
    report = build(folders, Path(options.out), published=options.published, x=options.x, split=options.split)
    for folder, reason in report.left_out:
        print(f"left out {folder}: {reason}", file=sys.stderr)
    print(f"{report.runs} run{'' if report.runs == 1 else 's'}: {report.page}")


REPORT = Command(
    "tables, figures and one page from finished runs",
    ReportOptions,
    _report,
    "Writes tables (CSV, Markdown), figures (PNG, SVG) and one self-contained page about finished runs.",
    positional=("runs", "*", "Run folders, or folders that contain run folders at any depth."),
)


_STEPS = 800  # of `pathex.train.pace` in an epoch of the demonstration, with its share of everything else


@dataclass(frozen=True)
class DemoOptions:
    """Options of ``pathex demo``.

    Attributes:
        methods: Pruning methods; ``dense`` trains without pruning.
        sparsity: Fraction of the prunable weights removed, in [0, 1).
        width: Channels of the first stage of the ResNet-20.
        epochs: Passes over the training images.
        batch_size: Images in a training step.
        lr: Learning rate at the start.
        images_per_class: Images of each class in the pruning set.
        seed: Seed of every run.
        device: ``auto``, ``cpu`` or ``cuda``.
        out: Folder of the runs and the report.
    """

    methods: tuple[str, ...] = ("dense", "random", "magnitude", "synflow", "px")
    sparsity: float = 0.985
    width: int = 16
    epochs: int = 5
    batch_size: int = 64
    lr: float = 0.05
    images_per_class: int = 10
    seed: int = 0
    device: str = "auto"
    out: str = "pathex-demo"


def _demo(config: DemoOptions) -> None:
    free = _threads_are_free()
    from pathex.cli.console import RunDisplay, show, table
    from pathex.experiments.report import build
    from pathex.experiments.runs import check_config, finished_result, run, settle_threads
    from pathex.train import check_machine, pace

    shared = {name: value for name, value in vars(config).items() if name not in {"methods", "width", "out"}}
    shared |= {"model_options": {"width": config.width}, "out": str(Path(config.out) / "runs")}
    runs = [RunConfig(method=method, **shared) for method in config.methods]
    for each in runs:
        check_config(each)
    columns = ("method", "test accuracy", "kept weights", "density", "dead layers", "pruning", "training")
    shown, folders = table(*columns, right=len(columns) - 1), []
    with RunDisplay() as display:
        threads, step = pace(free)
        if check_machine(config.device) == "cpu":
            left = sum(finished_result(Path(each.out) / run_name(each)) is None for each in runs)
            minutes = left * config.epochs * _STEPS * step / 60
            display.say(f"about {minutes:.1f} minutes, as busy as the machine is now; threads: {threads}")
        for each in runs:
            if free:
                settle_threads(each, threads)
            finished = run(each, on_event=display.of(each.method))
            folders.append(finished.folder)
            result = finished.result
            kept = f"{result['kept']:,}", f"{result['kept'] / result['total']:.4g}", str(result["dead_layers"])
            seconds = (f"{result[part]:.1f} s" for part in ("prune_seconds", "train_seconds"))
            shown.add_row(result["method"], f"{100 * result['test_accuracy']:.2f} %", *kept, *seconds)
    show(shown)
    print(f"report: {build(folders, Path(config.out) / 'report').page}")


DEMO = Command(
    "dense, random, magnitude, synflow and px on the embedded images, then a report",
    DemoOptions,
    _demo,
    "Trains a ResNet-20 on the embedded images, dense and pruned by each method to one sparsity, shows the results and "
    "writes a report. The same command again resumes what was stopped and skips what is done.",
    resumes=True,
)

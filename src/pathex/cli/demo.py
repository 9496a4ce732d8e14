"""``pathex demo``: the quick start, on images that come with the package."""

from dataclasses import dataclass
from pathlib import Path

from pathex.cli.parser import Command


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


def _execute(config: DemoOptions) -> None:
    from pathex.cli.console import RunDisplay, console, table
    from pathex.experiments.report import build
    from pathex.experiments.runs import RunConfig, check_config, run

    shared = {name: value for name, value in vars(config).items() if name not in {"methods", "width", "out"}}
    shared |= {"model_options": {"width": config.width}, "out": str(Path(config.out) / "runs")}
    runs = [RunConfig(method=method, **shared) for method in config.methods]
    for each in runs:
        check_config(each)
    columns = ("method", "test accuracy", "kept weights", "density", "dead layers", "pruning", "training")
    shown, folders = table(*columns, right=len(columns) - 1), []
    with RunDisplay() as display:
        for each in runs:
            finished = run(each, on_event=display.of(each.method))
            folders.append(finished.folder)
            result = finished.result
            kept = f"{result['kept']:,}", f"{result['kept'] / result['total']:.4g}", str(result["dead_layers"])
            seconds = (f"{result[part]:.1f} s" for part in ("prune_seconds", "train_seconds"))
            shown.add_row(result["method"], f"{100 * result['test_accuracy']:.2f} %", *kept, *seconds)
    console().print(shown)
    print(f"report: {build(folders, Path(config.out) / 'report').page}")


COMMAND = Command(
    "dense, random, magnitude, synflow and px on the embedded images, then a report",
    _execute,
    DemoOptions,
    "Trains a ResNet-20 on the embedded images, dense and pruned by each method to one sparsity, shows the results and "
    "writes a report. The same command again resumes what was stopped and skips what is done.",
    resumes=True,
)

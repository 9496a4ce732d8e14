"""Tickets of DeepLabV3+ on a subset of Pascal VOC 2012: dense and pruned, from pre-trained and from random weights.

    python -m benchmarks.segmentation --root DATA --weights mobilenet_v2-features-imagenet.safetensors --jobs 2

DATA holds ``VOCdevkit/VOC2012`` with lists that may name few images; the weights file those of the encoder. Nothing is
downloaded. Every run is one of ``pathex run``, with one thread; its folder stays below ``--runs``, so that the same
call goes on where it was stopped.

Protocol. Images and label maps are brought to a short side of ``--size`` pixels; training scales them by 0.5 to 2, cuts
windows of ``--crop`` pixels and mirrors half of them, batches of 8, SGD with momentum 0.9, weight decay 1e-4, ten
times the learning rate in the decoder and head, divided by 10 after 70 % and 90 % of the epochs. All weights of
convolutions (encoder, decoder, head) are pruned by one threshold; scores see ``--images-per-class`` images of each
class that training images show. ``px`` takes 10 rounds here (published: 100), the others their published number.
Measured is the mean IoU over all test images in whole, by overlapping windows, 255 ignored, over the classes that are
predicted or there: test images show classes that no training image does, which count as zero. Runs of one seed share
initial weights (of the decoder and head, where the encoder is pre-trained), pruning set, order and augmentation.

Rows: ``init`` (``pretrained`` encoder or ``random``), ``method``, ``sparsity``, ``seed``, and of ``result.json``
``test_miou``, ``train_loss``, ``train_miou``, ``dead_layers``, ``kept``, ``total`` and the seconds of one thread.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Table, arguments, command
from pathex import scores
from pathex.experiments.runs import RunConfig, check_config, finished_result, run_name
from pathex.experiments.sweep import sweep
from pathex.experiments.sweep.local import LocalExecutor
from pathex.experiments.sweep.work import share

__all__ = ["DENSE", "configs", "main"]

DENSE = "dense"
_FROM_RESULT = (
    *("test_miou", "train_loss", "train_miou", "dead_layers"),
    *("kept", "total", "prune_seconds", "train_seconds"),
)


def configs(given: argparse.Namespace) -> list[RunConfig]:
    """Every run, those that take longest first, so that no process is left with one at the end."""
    tickets = [(method, sparsity) for method in given.methods for sparsity in given.sparsity]
    tickets.sort(key=lambda ticket: -scores.find(ticket[0]).rounds)
    return [
        _config(given, method, sparsity, given.weights if init == "pretrained" else None, seed)
        for method, sparsity in [*tickets, (DENSE, 0.0)]
        for init in given.init
        for seed in given.seeds
    ]


def _config(given: argparse.Namespace, method: str, sparsity: float, weights: str | None, seed: int) -> RunConfig:
    normalisation = {} if given.mean is None else {"mean": [given.mean] * 3, "std": [given.mean] * 3}
    return RunConfig(
        method=method,
        sparsity=sparsity,
        rounds=None if method == DENSE else min(scores.find(method).rounds, given.px_rounds),
        model="smp:DeepLabV3Plus",
        model_options={"encoder_name": given.encoder, "encoder_output_stride": given.output_stride},
        weights=weights,
        data="voc2012",
        data_options={"root": given.root, "image_size": given.size, **normalisation},
        task="segmentation",
        task_options={"crop": given.crop},
        images_per_class=given.images_per_class,
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        head_lr=10 * given.lr,
        milestones=(0.7, 0.9),
        seed=seed,
        device="cpu",
        out=str(given.runs),
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of the command."""
    parser = arguments(__doc__, "segmentation")
    parser.add_argument("--root", required=True, help="folder with VOCdevkit/VOC2012")
    parser.add_argument("--weights", required=True, help="file of the encoder's pre-trained weights")
    parser.add_argument("--encoder", default="mobilenet_v2", help="its name in segmentation-models-pytorch")
    parser.add_argument("--mean", type=float, help="mean and deviation of all channels (default: ImageNet's)")
    parser.add_argument("--methods", nargs="*", default=["px", "magnitude", "snip", "random"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.9])
    parser.add_argument("--init", nargs="+", default=["pretrained", "random"], choices=["pretrained", "random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    for name, default in {
        "output_stride": 16, "size": 160, "crop": 160, "epochs": 20, "batch_size": 8, "images_per_class": 2,
        "px_rounds": 10,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.01, help="of the encoder; ten times as much in decoder and head")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "voc-subset", help="where the run folders go")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out every run and write the rows; 1 if a run failed."""
    given = parse(argv)
    todo = {run_name(config): config for config in configs(given)}
    for config in todo.values():
        check_config(config)
    result = sweep(todo, given.runs, lambda: LocalExecutor(share(given.jobs, 1, 0, given.jobs)))
    settings = {name: value for name, value in vars(given).items() if name not in {"root", "runs", "out", "jobs"}}
    table = Table(given.out, {**settings, "weights": Path(given.weights).name})
    for name, config in todo.items():
        if name in result.failed:
            print(f"{name} failed: {result.failed[name]}")
            continue
        found = finished_result(given.runs / name)
        assert found is not None
        about = {"init": "random" if config.weights is None else "pretrained", "method": config.method}
        measured = {key: found[key] for key in ("sparsity", "seed", *_FROM_RESULT)}
        table.add({**about, **measured})
    return int(bool(result.failed))


if __name__ == "__main__":
    raise SystemExit(command(main))

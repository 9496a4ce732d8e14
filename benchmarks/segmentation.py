"""Tickets of DeepLabV3+ on a subset of Pascal VOC 2012: dense and pruned, from pre-trained and from random weights.

    python benchmarks/segmentation.py --root DATA --weights mobilenet_v2-features-imagenet.safetensors --jobs 2

DATA holds ``VOCdevkit/VOC2012`` with lists that may name few images; the weights file those of the encoder. Nothing is
downloaded. Every run is one of ``pathex run``, in one process with one thread; its folder stays below ``--runs``, so
that the same call goes on where it was stopped.

Protocol. Images and label maps are brought to a short side of ``--size`` pixels; training scales them by 0.5 to 2, cuts
windows of ``--crop`` pixels and mirrors half of them, batches of 8, SGD with momentum 0.9, weight decay 1e-4, ten
times the learning rate in the decoder and head, divided by 10 after 70 % and 90 % of the epochs. All weights of
convolutions (encoder, decoder, head) are pruned by one threshold; scores see ``--images-per-class`` images of each
class that training images show. ``px`` takes 10 rounds here (published: 100), the others their published number.
Measured is the mean IoU over all test images in whole, by overlapping windows, 255 ignored, over the classes that are
predicted or there: test images show classes that no training image does, which count as zero. Runs of one seed share
initial weights (of the decoder and head, where the encoder is pre-trained), pruning set, order and augmentation.

| column | meaning |
|---|---|
| `init` | ``pretrained`` (the encoder) or ``random`` |
| `method`, `sparsity`, `seed` | the run; ``dense`` has sparsity 0 |
| `test_miou` | mean IoU, a fraction |
| `train_loss`, `train_miou` | of the last epoch, on augmented windows |
| `dead_layers` | layers of which no weight lies on a path from input to output |
| `kept`, `total` | kept weights and all weights of convolutions |
| `prune_seconds`, `train_seconds` | wall-clock times of one thread |
"""

import argparse
import json
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from pathex import scores
from pathex.errors import PathexError, PathexWarning
from pathex.runs import RunConfig, run
from pathex.runs.environment import environment
from pathex.runs.validation import check_config
from pathex.train import replacing

__all__ = ["configs", "main", "row_of"]

DENSE = "dense"
_FROM_RESULT = (
    "test_miou", "train_loss", "train_miou", "dead_layers", "kept", "total", "prune_seconds", "train_seconds",
)  # fmt: skip


def configs(given: argparse.Namespace) -> list[RunConfig]:
    """Every run, those that take longest first, so that no process is left with one at the end.

    Args:
        given: The arguments of the command.

    Returns:
        Settings of the runs.
    """
    tickets = [(method, sparsity) for method in given.methods for sparsity in given.sparsity]
    tickets.sort(key=lambda ticket: -scores.find(ticket[0]).card.rounds)
    weights = {"pretrained": given.weights, "random": None}
    return [
        _config(given, method, sparsity, weights[init], seed)
        for method, sparsity in [*tickets, (DENSE, 0.0)]
        for init in given.init
        for seed in given.seeds
    ]


def _config(given: argparse.Namespace, method: str, sparsity: float, weights: str | None, seed: int) -> RunConfig:
    rounds = None if method == DENSE else min(scores.find(method).card.rounds, given.px_rounds)
    normalisation = {} if given.mean is None else {"mean": [given.mean] * 3, "std": [given.mean] * 3}
    return RunConfig(
        method=method,
        sparsity=sparsity,
        rounds=rounds,
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


def row_of(config: RunConfig) -> dict[str, Any]:
    """Carry out a run, or what is left of it.

    Args:
        config: Its settings.

    Returns:
        The row.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PathexWarning)
    result = run(config).result
    init = "random" if config.weights is None else "pretrained"
    known = {"init": init, "method": config.method, "sparsity": config.sparsity, "seed": config.seed}
    return {**known, **{name: result[name] for name in _FROM_RESULT}}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", required=True, help="folder with VOCdevkit/VOC2012")
    parser.add_argument("--weights", required=True, help="file of the encoder's pre-trained weights")
    parser.add_argument("--encoder", default="mobilenet_v2", help="its name in segmentation-models-pytorch")
    parser.add_argument("--mean", type=float, help="mean and deviation of all channels (default: ImageNet's)")
    parser.add_argument("--output-stride", type=int, default=16)
    parser.add_argument("--methods", nargs="*", default=["px", "magnitude", "snip", "random"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.9])
    parser.add_argument("--init", nargs="+", default=["pretrained", "random"], choices=["pretrained", "random"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, default=160, help="short side of the images, in pixels")
    parser.add_argument("--crop", type=int, default=160, help="side of the windows, in pixels")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--images-per-class", type=int, default=2)
    parser.add_argument("--px-rounds", type=int, default=10, help="most rounds of a method")
    parser.add_argument("--lr", type=float, default=0.01, help="of the encoder; ten times as much in decoder and head")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "voc-subset", help="where the run folders go")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "voc-subset")
    given = parser.parse_args(argv)
    if given.jobs < 1:
        parser.error("--jobs must be at least 1")
    if not Path(given.weights).is_file():
        parser.error(f"--weights {given.weights!r}: no such file")
    try:
        for config in configs(given):
            check_config(config)
    except PathexError as error:
        parser.error(str(error))
    return given


def _write(given: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    import pandas as pd

    frame = pd.DataFrame(rows).sort_values(["init", "method", "sparsity", "seed"])
    with replacing(given.out / "rows.csv") as temporary:
        frame.to_csv(temporary, index=False)


def _about(given: argparse.Namespace) -> dict[str, Any]:
    """Settings without the folders of this machine, and the environment."""
    settings = {name: value for name, value in vars(given).items() if name not in {"root", "runs", "out", "jobs"}}
    return {
        "settings": {**settings, "weights": Path(given.weights).name},
        "jobs": given.jobs,
        "environment": {**environment(torch.device("cpu")), "threads": 1},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out every run, print and write.

    Args:
        argv: Arguments; None is those of the command line.

    Returns:
        0, or 1 if a run failed.
    """
    given = _arguments(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes to come
    given.out.mkdir(parents=True, exist_ok=True)
    with replacing(given.out / "environment.json") as temporary:
        temporary.write_text(json.dumps(_about(given), indent=2) + "\n", encoding="utf-8")
    rows: list[dict[str, Any]] = []
    todo = configs(given)
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(row_of, config): config for config in todo}
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                config = futures[future]
                print(f"{config.method} {config.sparsity} seed {config.seed} failed:", file=sys.stderr)
                traceback.print_exception(error)
                continue
            rows.append(future.result())
            print(f"{len(rows)}/{len(todo)}  {rows[-1]}", flush=True)
            _write(given, rows)
    return 0 if len(rows) == len(todo) else 1


if __name__ == "__main__":
    sys.exit(main())

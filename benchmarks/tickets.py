"""Accuracy of many tickets of one architecture: prune, then train them all at once on one device.

    python benchmarks/tickets.py --smoke                                    # seconds: does it work here, how fast is it
    python benchmarks/tickets.py --data npz:cifar10.npz --methods px magnitude dense --seeds 0 1 2 --precision bf16
    python benchmarks/tickets.py --data sheets:part1,part2 --methods px px:redraw=true,rounds=20 masks/mine.safetensors
    python benchmarks/tickets.py --model timm:vit_tiny_patch16_224 --option img_size=32 patch_size=4 --lr 0.01 ...

A method is a name of ``pathex.methods()`` with options behind a colon (those of the method, and ``rounds``,
``allocation``, ``schedule``, ``budget``, ``min_per_layer`` of ``pathex.prune``), ``dense``, or a file of a mask. Every
ticket gets its initial weights, its pruning set (ten images of each class), the order of the images and their
augmentation from its seed: tickets of one seed are paired. The training is the published one of CIFAR-10 by default
(160 epochs, SGD 0.1 with momentum 0.9, a tenth of the rate at 1/2 and 3/4, weight decay 1e-4, batches of 128, random
crops and mirrorings); the last, smaller batch of an epoch is trained on too. `ticket_training.py` says how it is fast.

Written are one row a ticket (csv) as soon as it is there, masks beside it, settings and environment (json). Rows that
are there already are not computed again. With ``--minutes`` the program ends in time with status 3, and goes on from
the last epoch when it is called again with the same arguments.

| column | meaning |
|---|---|
| `model`, `activation`, `data`, `method`, `sparsity`, `seed`, `epochs`, `batch_size`, `lr`, `precision` | the ticket |
| `accuracy` | share of the test images classified right after the last epoch |
| `train_loss` | mean loss over the last epoch |
| `dead_layers` | layers of which no weight lies on a path; empty for a mask from a file |
| `kept`, `total` | kept and all prunable weights |
| `prune_seconds` | wall-clock time of pruning, while other tickets may have been pruned beside it |
| `epoch_seconds` | wall-clock time of an epoch over the tickets that were trained together |
| `together`, `graphs` | how many those were, and whether their steps were captured |
| `device`, `torch` | where |
"""

import argparse
import csv
import json
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from ticket_data import DeviceImages, load, subset
from ticket_network import ACTIVATIONS, Network
from ticket_pruning import DENSE, Spec, find_masks, parse_method
from ticket_training import Options, Trainer, capture_all, train

from pathex import Mask
from pathex.data import ImageData
from pathex.errors import InvalidInput, PathexError, PathexWarning
from pathex.prunable import prunable_weights
from pathex.runs.environment import environment
from pathex.train import check_machine, replacing

__all__ = ["Experiment", "main", "run", "smoke"]

_UNFINISHED = 3


@dataclass(frozen=True)
class Experiment:
    """Everything that tickets are made of.

    Attributes:
        network: The architecture.
        data: The images, all in memory.
        specs: The tickets.
        options: How they are trained.
        device: Where.
        out: File of the rows.
        concurrent: Tickets that are trained together.
        images_per_class: Images of each class in the pruning set.
        jobs: Processes that prune.
    """

    network: Network
    data: ImageData
    specs: Sequence[Spec]
    options: Options
    device: torch.device
    out: Path
    concurrent: int = 12
    images_per_class: int = 10
    jobs: int = 1

    def key(self, spec: Spec) -> dict[str, Any]:
        """What tells the row of a ticket from others.

        Args:
            spec: The ticket.

        Returns:
            Columns.
        """
        shared = {name: getattr(self.options, name) for name in ("epochs", "batch_size", "lr", "precision")}
        network = {"model": _label(self.network), "activation": self.network.activation, "data": self.data.name}
        return {**network, "method": spec.label, "sparsity": spec.sparsity, "seed": spec.seed, **shared}


def _label(network: Network) -> str:
    options = ",".join(f"{name}={value}" for name, value in network.options.items())
    return f"{network.name}:{options}" if options else network.name


def run(experiment: Experiment, deadline: float | None = None) -> bool:
    """Prune and train every ticket that has no row yet.

    Args:
        experiment: The tickets.
        deadline: Time of ``time.monotonic`` by which to end.

    Returns:
        Whether all are done.
    """
    experiment.out.parent.mkdir(parents=True, exist_ok=True)
    known = [_texts(row) for row in _read(experiment.out)]
    todo = [
        spec
        for spec in experiment.specs
        if not any(_texts(experiment.key(spec)).items() <= row.items() for row in known)
    ]
    print(f"{len(todo)} tickets to train, {len(experiment.specs) - len(todo)} are there already", flush=True)
    masks = find_masks(
        todo,
        experiment.network,
        experiment.data,
        device=experiment.device,
        images_per_class=experiment.images_per_class,
        folder=experiment.out.with_name(f"{experiment.out.stem}-masks"),
        jobs=experiment.jobs,
    )
    images = DeviceImages.of(experiment.data, experiment.device)
    for start in range(0, len(todo), experiment.concurrent):
        group = todo[start : start + experiment.concurrent]
        if not _train_group(experiment, images, group, masks, deadline):
            return False
    return True


def _train_group(
    experiment: Experiment,
    images: DeviceImages,
    group: Sequence[Spec],
    masks: Mapping[Spec, Mask | None],
    deadline: float | None,
) -> bool:
    """Train tickets together and write their rows; False if the time was up before their last epoch."""
    options, paused = experiment.options, experiment.out.with_name(f"{experiment.out.stem}-paused.pt")
    trainers = _trainers(experiment, images, group, masks)
    names = repr([sorted(experiment.key(spec).items()) for spec in group] + [asdict(options)])
    done, spent, losses = 0, 0.0, [float("nan")] * len(group)
    if paused.exists() and (state := torch.load(paused, weights_only=True))["names"] == names:
        done, spent, losses = state["done"], state["spent"], state["losses"]
        for trainer, own in zip(trainers, state["states"], strict=True):
            trainer.load(own)
        print(f"going on after epoch {done}", flush=True)
    began = time.monotonic()
    reason = capture_all(trainers)
    print(f"capture took {time.monotonic() - began:.1f} s" if reason is None else f"no CUDA graphs: {reason}")

    def report(epoch: int, seconds: float, now: list[float]) -> None:
        nonlocal spent, losses
        spent, losses = spent + seconds, now
        pace = seconds / len(group)
        print(f"epoch {epoch} of {options.epochs}: {pace:.3f} s a ticket, losses {min(now):.3f} to {max(now):.3f}")
        sys.stdout.flush()

    done = train(trainers, done=done, deadline=deadline, on_epoch=report)
    if done < options.epochs:
        states = [trainer.state() for trainer in trainers]
        with replacing(paused) as temporary:
            torch.save({"names": names, "done": done, "spent": spent, "losses": losses, "states": states}, temporary)
        print(f"time is up after epoch {done}; call again to go on", flush=True)
        return False
    for spec, trainer, loss in zip(group, trainers, losses, strict=True):
        measured = {
            "accuracy": trainer.accuracy(),
            "train_loss": round(loss, 5),
            **_pruning_columns(trainer, masks[spec]),
            "epoch_seconds": round(spent / options.epochs / len(group), 4),
            "together": len(group),
            "graphs": reason is None,
            "device": environment(experiment.device)["device"],
            "torch": torch.__version__,
        }
        _append(experiment.out, {**experiment.key(spec), **measured})
        print(f"{spec.label} at {spec.sparsity:g}, seed {spec.seed}: {measured['accuracy']:.4f}", flush=True)
    paused.unlink(missing_ok=True)
    return True


def _trainers(
    experiment: Experiment, images: DeviceImages, group: Sequence[Spec], masks: Mapping[Spec, Mask | None]
) -> list[Trainer]:
    return [
        Trainer(experiment.network.create(spec.seed), masks[spec], spec.seed, images, experiment.options)
        for spec in group
    ]


def _pruning_columns(trainer: Trainer, mask: Mask | None) -> dict[str, Any]:
    total = sum(weight.numel() for weight in prunable_weights(trainer.model).values())
    if mask is None:
        return {"dead_layers": 0, "kept": total, "total": total, "prune_seconds": 0.0}
    known = {name: mask.metadata.get(name, "") for name in ("dead_layers", "prune_seconds")}
    return {"dead_layers": known["dead_layers"], "kept": mask.kept, "total": mask.total, **known}


# -- rows --------------------------------------------------------------------------------------------------------------


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _append(path: Path, row: Mapping[str, Any]) -> None:
    rows = [*_read(path), _texts(row)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _write_about(experiment: Experiment, arguments: Mapping[str, Any]) -> None:
    about = {
        "options": asdict(experiment.options),
        "images_per_class": experiment.images_per_class,
        "methods": arguments["methods"],
        "mean": experiment.data.mean.tolist(),
        "std": experiment.data.std.tolist(),
        "environment": environment(experiment.device),
    }
    with replacing(experiment.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


# -- a quick look ------------------------------------------------------------------------------------------------------


def smoke(experiment: Experiment) -> None:
    """Train the first two tickets for one epoch, captured and uncaptured; print how fast and how far apart they are.

    Args:
        experiment: The tickets; of the images only some are used.
    """
    wanted = 5000 if experiment.device.type == "cuda" else 500
    data = subset(experiment.data, wanted)
    specs = list(experiment.specs[:2])
    options = replace(experiment.options, epochs=1)
    small = replace(experiment, data=data, specs=specs, options=options)
    masks = find_masks(specs, small.network, data, device=small.device, images_per_class=2, folder=None, jobs=1)
    images = DeviceImages.of(data, small.device)
    ends = []
    for captured in (True, False):
        trainers = _trainers(small, images, specs, masks)
        began = time.monotonic()
        reason = capture_all(trainers) if captured else "not tried"
        print(f"CUDA graphs: {reason or 'captured'} ({time.monotonic() - began:.1f} s)", flush=True)
        each = _seconds_of_training(trainers) / len(specs)
        accuracies = ", ".join(f"{trainer.accuracy():.3f}" for trainer in trainers)
        pace = len(data.train) / each
        print(f"  {pace:.0f} images a second, {each:.3f} s a ticket, test accuracy {accuracies}", flush=True)
        ends.append(torch.cat([trainer.state()["weights"].cpu() for trainer in trainers]))
    print(f"captured and uncaptured weights differ by {float((ends[0] - ends[1]).norm() / ends[1].norm()):.1e} (norm)")


def _seconds_of_training(trainers: Sequence[Trainer]) -> float:
    seconds = []
    train(trainers, on_epoch=lambda _, took, __: seconds.append(took))
    return sum(seconds)


# -- command line ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet20", help="a name of pathex.models.create")
    parser.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="options of the model")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu", help="takes the place of every ReLU")
    parser.add_argument("--data", help="npz:PATH, sheets:FOLDER,FOLDER, ... (default of --smoke: fashion-mini)")
    parser.add_argument("--data-name", help="what rows call the data (default: the name of the file)")
    parser.add_argument("--methods", nargs="+", default=["px"], metavar="METHOD", help="NAME[:OPTION=VALUE,...]")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.982])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for option in fields(Options):
        name, default = f"--{option.name.replace('_', '-')}", option.default
        if option.name in {"augment", "nesterov"}:
            continue
        if option.name == "precision":
            parser.add_argument(name, choices=("float32", "bf16"), default=default)
        elif isinstance(default, tuple):
            parser.add_argument(name, type=float, nargs="*", default=list(default), help="fractions of the training")
        else:
            parser.add_argument(name, type=type(default), default=default)
    parser.add_argument("--nesterov", action="store_true")
    parser.add_argument("--augment", choices=("none", "flip", "crop-flip"), help="default: the usual one of the data")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--concurrent", type=int, default=12, help="tickets that are trained together")
    parser.add_argument("--images-per-class", type=int, default=10, help="images of each class that scores see")
    parser.add_argument("--jobs", type=int, default=1, help="processes that prune, on the same device")
    parser.add_argument("--minutes", type=float, help="end in time, to go on when called again")
    parser.add_argument("--smoke", action="store_true", help="two tickets, one epoch, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rows" / "tickets.csv")
    return parser


def _experiment(given: Mapping[str, Any]) -> Experiment:
    if min(given["epochs"], given["batch_size"], given["concurrent"], given["jobs"]) < 1:
        raise InvalidInput("--epochs, --batch-size, --concurrent and --jobs must be at least 1")
    if not given["smoke"] and given["data"] is None:
        raise InvalidInput("--data is needed: npz:PATH, sheets:FOLDER,FOLDER or any name of pathex.data.load")
    wrong = [pair for pair in given["option"] if "=" not in pair]
    if wrong:
        raise InvalidInput(f"--option takes NAME=VALUE, got {wrong[0]!r}")
    for label in given["methods"]:
        parse_method(label)
    specs = _specs(given["methods"], given["sparsity"], given["seeds"])
    name = given["data"] or "fashion-mini"
    data = replace(load(name), name=given["data_name"] or _plain_name(name))
    options = {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in given["option"])}
    network = Network(given["model"], data.num_classes, data.in_channels, given["activation"], options)
    network.create(0)
    training = {option.name: given[option.name] for option in fields(Options)}
    training |= {"milestones": tuple(given["milestones"]), "augment": given["augment"] or data.augment}
    shared = {name: given[name] for name in ("out", "concurrent", "images_per_class", "jobs")}
    return Experiment(network, data, specs, Options(**training), torch.device(check_machine(given["device"])), **shared)


def _plain_name(data: str) -> str:
    """What rows call a data set: not the folder that it lies in on this machine."""
    prefix, _, rest = data.partition(":")
    return prefix if prefix == "sheets" or not rest else Path(rest).stem


def _specs(labels: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int]) -> list[Spec]:
    """One ticket for each method, sparsity and seed; the sparsity of dense networks and of masks is their own."""
    specs = []
    for label in labels:
        if label == DENSE:
            own = [0.0]
        elif label.endswith(".safetensors"):
            own = [round(Mask.load(label).sparsity, 6)]
        else:
            own = list(sparsities)
        specs += [Spec(label, seed, sparsity) for sparsity in own for seed in seeds]
    return specs


def main(argv: Sequence[str] | None = None) -> int:
    """Prune, train, write.

    Args:
        argv: Arguments; None is those of the command line.

    Returns:
        0; 2 on bad input; 3 if the time was up.
    """
    given = vars(_parser().parse_args(argv))
    deadline = None if given["minutes"] is None else time.monotonic() + 60 * given["minutes"]
    # Streams beyond the number of hardware queues would wait for each other; read when CUDA starts.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    torch.backends.cudnn.benchmark = True
    warnings.simplefilter("ignore", PathexWarning)
    try:
        experiment = _experiment(given)
        if given["smoke"]:
            smoke(experiment)
            return 0
        experiment.out.parent.mkdir(parents=True, exist_ok=True)
        _write_about(experiment, given)
        return 0 if run(experiment, deadline) else _UNFINISHED
    except PathexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

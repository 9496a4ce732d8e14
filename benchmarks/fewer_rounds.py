"""Are 100 rounds needed? What fewer rounds, re-used gates and fewer images keep, cost, and lead to after training.

    python benchmarks/fewer_rounds.py --data npz:cifar10.npz                            # kept weights and seconds
    python benchmarks/fewer_rounds.py --models resnet20:width=8 --epochs 12 --jobs 2    # accuracy too, fashion-mini
    python benchmarks/fewer_rounds.py --cases rounds=20 rounds=20,images=50 schedule=adaptive:0.05

A case is what differs from the reference, 100 rounds with 100 images in float32: ``images`` (all classes together),
``dtype``, ``set`` (another draw of the pruning set), options of ``pathex.prune`` and of the method. ``set=1`` and
``dtype=float64`` are the noise floor: they change nothing that a user would call a setting. Tickets of one seed share
initial weights, pruning set and the order of the training images, so that accuracies are compared in pairs. Networks
are trained by `ticket_training.py`, with the rates and milestones of `tickets.py`.

Written are, beside ``--out NAME.csv`` (one row for each pruning): ``NAME-accuracy.csv`` (one for each training),
``NAME-summary.csv`` (means over seeds), ``NAME.json`` (settings and environment of every call), ``NAME.png`` and
``.svg``, and the masks. Rows that are there are not computed again, so that a killed study goes on. For seconds that
can be quoted, prune with one job on a quiet machine.

| column | meaning |
|---|---|
| `model`, `data`, `train_images`, `method`, `case`, `sparsity`, `seed` | the ticket |
| `rounds`, `seconds` | rounds made, and wall-clock time of the whole prune |
| `same` | share of the kept weights that the reference of the same seed keeps too |
| `disconnected`, `dead_layers` | kept weights on no path; layers without a weight on a path |
| `epochs`, `batch_size`, `lr`, `accuracy`, `train_seconds` | training; share of the test images classified right |
| `faster` (summary) | mean over seeds of the reference's seconds over these |
| `difference`, `standard_error`, `seeds` (summary) | of the accuracy to the reference's, in pairs of one seed |
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from fewer_rounds_results import NOISE, REFERENCE, TRAINING, draw, summary
from ticket_data import DeviceImages, load, subset
from ticket_network import Network
from ticket_training import Options, Trainer, capture_all, train

import pathex
from pathex import Mask, scores
from pathex.data import ImageData
from pathex.errors import InvalidInput, PathexError, PathexWarning
from pathex.runs.environment import environment
from pathex.schedule import check_options
from pathex.train import replacing

__all__ = ["CASES", "Ticket", "main", "parse_case"]

CASES = (
    REFERENCE,
    *NOISE,
    *(f"rounds={rounds}" for rounds in (10, 20, 50)),
    *(f"schedule=adaptive:{tolerance}" for tolerance in (0.02, 0.05, 0.1)),
    *(f"reuse_gates={rounds}" for rounds in (2, 4, 8)),
    *(f"images={images}" for images in (10, 50)),
)
_OWN = {"images": 100, "set": 0, "dtype": "float32"}
_OF_PRUNE = ("rounds", "schedule", "allocation", "budget", "min_per_layer")
_OTHER_SET = 1_000_000  # far from the seeds of the tickets
_TICKET = ["model", "data", "train_images", "method", "case", "sparsity", "seed"]


@dataclass(frozen=True)
class Ticket:
    """One pruning: a network, what it is pruned with, and where.

    Attributes:
        model: Name of a model, with options behind a colon.
        data: Name of a data set.
        train_images: The first training images that are used; 0 is all.
        method: The scorer.
        case: What differs from the reference.
        sparsity: Fraction removed.
        seed: Seed of weights, pruning set and training.
        device: ``cpu`` or ``cuda``.
    """

    model: str
    data: str
    train_images: int
    method: str
    case: str
    sparsity: float
    seed: int
    device: str

    def key(self) -> dict[str, Any]:
        """What tells its rows from others.

        Returns:
            Columns.
        """
        values = asdict(self)
        return {**{name: values[name] for name in _TICKET}, "data": _plain_name(self.data)}

    def mask_file(self, folder: Path) -> Path:
        """Where its mask is kept.

        Args:
            folder: Folder of the masks.

        Returns:
            The file.
        """
        exact = hashlib.sha256(repr((self.key(), self.device)).encode()).hexdigest()[:10]
        plain = re.sub(r"[^A-Za-z0-9.=]+", "-", f"{self.model}-{self.case}-{self.sparsity:g}-{self.seed}")
        return folder / f"{plain}-{exact}.safetensors"


def _plain_name(data: str) -> str:
    """What rows call a data set: not the folder that it lies in on this machine."""
    _, _, rest = data.partition(":")
    return Path(rest).stem if rest else data


def _pairs(text: str) -> dict[str, Any]:
    wrong = [pair for pair in text.split(",") if pair and "=" not in pair]
    if wrong:
        raise InvalidInput(f"options are NAME=VALUE, separated by commas, not {wrong[0]!r}")
    return {name: yaml.safe_load(value) for name, _, value in (p.partition("=") for p in text.split(",") if p)}


def parse_case(case: str, method: str = "px") -> tuple[dict[str, Any], dict[str, Any]]:
    """What a case sets.

    Args:
        case: Such as ``rounds=20,images=50``; values are read as YAML.
        method: The scorer whose options it may name.

    Returns:
        What this script does itself (``images``, ``set``, ``dtype``), and arguments of ``pathex.prune``.

    Raises:
        InvalidInput: If an option or a value is not known.
    """
    given = _pairs(case)
    own = {name: given.pop(name, default) for name, default in _OWN.items()}
    if own["dtype"] not in ("float32", "float64"):
        raise InvalidInput(f"case {case!r}: dtype is {own['dtype']!r}; allowed: float32, float64")
    for name in ("images", "set"):
        if not isinstance(own[name], int) or own[name] < 0:
            raise InvalidInput(f"case {case!r}: {name} is {own[name]!r}; allowed: a whole number")
    scores.find(method).check({name: value for name, value in given.items() if name not in _OF_PRUNE})
    check_options(given.get("schedule", "exponential"), given)
    return own, {"rounds": 100, **given}


# -- one ticket --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _data(name: str, train_images: int) -> ImageData:
    data = load(name)
    return replace(data, train=subset(data, train_images).train) if train_images else data


def _network(ticket: Ticket, data: ImageData) -> Network:
    name, _, options = ticket.model.partition(":")
    return Network(name, data.num_classes, data.in_channels, options=_pairs(options))


def _prune(ticket: Ticket, folder: Path) -> dict[str, Any]:
    """Find a mask and keep it as a file; the row, without the comparison."""
    warnings.simplefilter("ignore", PathexWarning)
    data = _data(ticket.data, ticket.train_images)
    own, options = parse_case(ticket.case, ticket.method)
    dtype = getattr(torch, own["dtype"])
    seed = ticket.seed + _OTHER_SET * own["set"]
    chosen = pathex.data.pruning_set(data, own["images"] // data.num_classes, seed)
    model = _network(ticket, data).create(ticket.seed).to(ticket.device, dtype)
    images = chosen.images.to(ticket.device, dtype)
    labels = chosen.labels.to(ticket.device)
    # Loads what is loaded once.
    pathex.prune(model, ticket.method, sparsity=0.5, data=(images[:2], labels[:2]), rounds=1, progress=False)
    began = time.perf_counter()
    found = pathex.prune(
        model,
        ticket.method,
        sparsity=ticket.sparsity,
        data=(images, labels),
        seed=ticket.seed,
        progress=False,
        **options,
    )
    seconds = round(time.perf_counter() - began, 3)
    found.mask.save(ticket.mask_file(folder))
    made = {"rounds": len(found.history), "seconds": seconds}
    broken = {"disconnected": found.report.disconnected, "dead_layers": len(found.report.dead_layers)}
    return {**ticket.key(), **made, **broken, "kept": found.mask.kept, "total": found.mask.total}


def _train(ticket: Ticket, folder: Path, options: Options) -> dict[str, Any]:
    """Train the ticket whose mask is there; the row."""
    data, device = _data(ticket.data, ticket.train_images), torch.device(ticket.device)
    options = replace(options, augment=data.augment)
    network, mask = _network(ticket, data).create(ticket.seed), Mask.load(ticket.mask_file(folder))
    trainer = Trainer(network, mask, ticket.seed, DeviceImages.of(data, device), options)
    capture_all([trainer])
    began = time.perf_counter()
    train([trainer])
    seconds = round(time.perf_counter() - began, 1)
    known = {name: getattr(options, name) for name in TRAINING}
    return {**ticket.key(), **known, "accuracy": trainer.accuracy(), "train_seconds": seconds}


def _same(ticket: Ticket, folder: Path) -> float:
    """Share of its kept weights that the reference keeps too."""
    mask = Mask.load(ticket.mask_file(folder))
    reference = Mask.load(replace(ticket, case=REFERENCE).mask_file(folder))
    return round(sum(int((kept & reference[name]).sum()) for name, kept in mask.items()) / mask.kept, 5)


# -- all tickets -------------------------------------------------------------------------------------------------------


def _prune_all(tickets: Sequence[Ticket], rows: Path, folder: Path, jobs: int, threads: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = _read(rows)
    todo = [t for t in tickets if not (_has(known, t.key()) and t.mask_file(folder).is_file())]
    print(f"{len(todo)} masks to find, {len(tickets) - len(todo)} are there", flush=True)
    # References go first: the others are compared with them.
    for first in (True, False):
        group = [ticket for ticket in todo if (ticket.case == REFERENCE) == first]
        for ticket, row in _carried_out(_prune, [(ticket, folder) for ticket in group], jobs, threads):
            row["same"] = _same(ticket, folder)
            _append(rows, row, ticket.key())
            print(
                f"{_label(ticket)}: {row['rounds']} rounds, {row['seconds']} s, {row['same']:.2%} the same", flush=True
            )


def _train_all(tickets: Sequence[Ticket], rows: Path, folder: Path, options: Options, jobs: int, threads: int) -> None:
    known, settings = _read(rows), {name: getattr(options, name) for name in TRAINING}
    todo = [ticket for ticket in tickets if not _has(known, {**ticket.key(), **settings})]
    print(f"{len(todo)} tickets to train, {len(tickets) - len(todo)} are there", flush=True)
    for ticket, row in _carried_out(_train, [(ticket, folder, options) for ticket in todo], jobs, threads):
        _append(rows, row, {**ticket.key(), **settings})
        print(f"{_label(ticket)}: accuracy {row['accuracy']:.4f}", flush=True)


def _label(ticket: Ticket) -> str:
    return f"{ticket.model} at {ticket.sparsity:g}, {ticket.case}, seed {ticket.seed}"


def _carried_out(
    work: Callable[..., dict[str, Any]], calls: Sequence[tuple[Any, ...]], jobs: int, threads: int
) -> Iterable[tuple[Ticket, dict[str, Any]]]:
    """Rows as they come, with their tickets, from this process or from several."""
    if jobs == 1 or len(calls) < 2:
        torch.set_num_threads(threads)
        for call in calls:
            yield call[0], work(*call)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        futures = {pool.submit(work, *call): call[0] for call in calls}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}


def _has(rows: Sequence[Mapping[str, str]], key: Mapping[str, Any]) -> bool:
    return any(_texts(key).items() <= row.items() for row in rows)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _append(path: Path, row: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Add a row in place of one with the same key."""
    others = [other for other in _read(path) if not _has([other], key)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        table.writeheader()
        table.writerows([*others, _texts(row)])


# -- what comes out ----------------------------------------------------------------------------------------------------


def _write_results(out: Path) -> None:
    accuracy = _beside(out, "accuracy")
    table = summary(pd.read_csv(out), pd.read_csv(accuracy) if accuracy.exists() else None)
    with replacing(_beside(out, "summary")) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    figure = draw(table)
    for form in ("png", "svg"):
        with replacing(out.with_suffix(f".{form}")) as temporary:
            figure.savefig(temporary, format=form, dpi=150)
    print(table.drop(columns=["data", "train_images", "method"]).to_string(index=False))


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.stem}-{what}.csv")


def _write_about(out: Path, given: Mapping[str, Any]) -> None:
    path, settings = out.with_suffix(".json"), {k: v for k, v in given.items() if k != "out"}
    settings["data"] = _plain_name(given["data"])
    calls = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    about = {"settings": settings, "load_before": os.getloadavg()[0]}
    about["environment"] = environment(torch.device(given["device"]))
    with replacing(path) as temporary:
        others = [call for call in calls if call["settings"] != settings]
        temporary.write_text(json.dumps([*others, about], indent=2) + "\n", encoding="utf-8")


# -- command line ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet20:width=8"], help="NAME[:OPTION=VALUE,...]")
    parser.add_argument("--data", default="fashion-mini", help="npz:PATH or another name of pathex.data.load")
    parser.add_argument("--limit", type=int, default=0, help="training images that are used; 0 is all")
    parser.add_argument("--method", default="px")
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="NAME=VALUE,...")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.982])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0, help="of training every ticket; 0 only prunes")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rows" / "fewer_rounds.csv")
    return parser


def _tickets(given: Mapping[str, Any]) -> list[Ticket]:
    for name, least in (("jobs", 1), ("threads", 1), ("epochs", 0), ("limit", 0)):
        if given[name] < least:
            raise InvalidInput(f"--{name} must be at least {least}, not {given[name]}")
    cases = list(dict.fromkeys([REFERENCE, *given["cases"]]))
    data = _data(given["data"], given["limit"])
    for case in cases:
        own, _ = parse_case(case, given["method"])
        if own["images"] % data.num_classes or not own["images"]:
            raise InvalidInput(f"case {case!r}: images must be a multiple of the {data.num_classes} classes")
    tickets = [
        Ticket(model, given["data"], given["limit"], given["method"], case, sparsity, seed, given["device"])
        for model in given["models"]
        for sparsity in given["sparsity"]
        for seed in given["seeds"]
        for case in cases
    ]
    for ticket in {ticket.model: ticket for ticket in tickets}.values():
        _network(ticket, data).create(0)
    return tickets


def main(argv: Sequence[str] | None = None) -> int:
    """Prune, train, write.

    Args:
        argv: Arguments; None is those of the command line.

    Returns:
        0; 2 on bad input.
    """
    given = vars(_parser().parse_args(argv))
    out, jobs, threads = given["out"], given["jobs"], given["threads"]
    try:
        tickets = _tickets(given)
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_about(out, given)
        folder = out.with_name(f"{out.stem}-masks")
        _prune_all(tickets, out, folder, jobs, threads)
        if given["epochs"]:
            options = Options(given["epochs"], given["batch_size"], given["lr"])
            _train_all(tickets, _beside(out, "accuracy"), folder, options, jobs, threads)
        _write_results(out)
    except PathexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

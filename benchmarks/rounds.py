"""Seconds and memory of the rounds of each method, against a plain implementation of px.

    python -m benchmarks.rounds --threads 2
    python -m benchmarks.rounds --methods px px:redraw=true px:rounds=25 --rounds 20 --out rows.csv
    python -m benchmarks.rounds --threads 2 --baseline plainest --methods px px:numba=false --out prunes.csv

A case is a method, with options of its own or of ``pathex.prune`` behind a colon; with ``numba=false`` all weights are
computed in all rounds. Images are normal numbers drawn from the seed. Every method gets ``--rounds``, also those that
are published with one. The baseline comes first: ``plain`` (``benchmarks/plain.py``), or ``plainest``, the least that
computes ``px``; their threshold removes ties, so their ``kept`` may differ by a few weights.

Each case has a fresh process. The processes take turns of five rounds and at
least a second, one at a time, so that whatever else the machine does falls on all of them. What is loaded and set up on
first use is done before. In the plot, bars are medians and thin lines quartiles.

| column | meaning |
|---|---|
| `rounds` | rounds of the prune |
| `seconds`, `cpu_seconds` | wall-clock and processor time of a prune: setup, all rounds, report |
| `round_seconds`, `round_low`, `round_high` | median and quartiles of the rounds |
| `resident_mib` | peak of resident memory above what was resident before (Linux) |
| `tensor_mib` | peak of live tensors above what was there before, of one more prune of one round |
| `kept` | weights that the mask keeps |
| `speed_up`, `prune_speed_up`, `memory_ratio` | how many times as fast as the baseline; memory over its own |
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
import yaml

import pathex
from benchmarks.measure import (
    ERROR,
    MIB,
    CaseFailed,
    Process,
    Row,
    Table,
    arguments,
    bars,
    command,
    now,
    peak_memory,
    problem,
    quartiles,
    save,
    tensor_peak,
)
from benchmarks.plain import plain_px, plainest_px
from pathex import scores
from pathex.graph import freed_memory_kept

__all__ = ["PLAIN", "main", "options_of", "with_ratios"]

PLAIN = "plain"
_BASELINES = {PLAIN: plain_px, "plainest": plainest_px}
_TURN_ROUNDS, _TURN_SECONDS = 5, 1.0
_METHODS = (
    *("px", "px-literal", "px-cvpr24", "synflow", "synflow-l2", "ntk-sap", "snip", "magnitude", "random"),
    *("px:redraw=true", "px:calibration=running", "px:rounds=25", "px:schedule=adaptive"),
)


def options_of(label: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a label such as ``px:redraw=true,rounds=25``; the values are read as YAML."""
    name, _, text = label.partition(":")
    if name not in _BASELINES:
        scores.find(name)
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return name, {option: yaml.safe_load(value) for option, _, value in pairs}


def work(connection: Connection, label: str, given: dict[str, Any]) -> None:
    """Prune in this process, at the pace that the other end sets, and send the row."""
    name, options = options_of(label)
    if not options.pop("numba", True):
        sys.modules["numba"] = None  # type: ignore[assignment]  # as if it were not installed
    device: torch.device = given["device"]
    model, x, y = problem(given["model"], given["images"], given["classes"], given["seed"], device, given["image_size"])

    def prune(count: int, rounds: int | None = None, on_round: Callable[..., object] | None = None) -> int:
        own = {"rounds": given["rounds"], **options} | ({} if rounds is None else {"rounds": rounds})
        if name in _BASELINES:
            with freed_memory_kept():  # as the others do
                kept = _BASELINES[name](
                    model, x[:count], sparsity=given["sparsity"], rounds=own["rounds"], on_round=on_round
                )
            return sum(int(entry.sum()) for entry in kept.values())
        own |= {"sparsity": given["sparsity"], "seed": given["seed"], "on_round": on_round, "progress": False}
        return pathex.prune(model, name, data=[(x[:count], y[:count])], **own).mask.kept

    prune(len(x) if device.type == "cuda" else 2, 1)
    _take_turn(connection)
    laps: list[float] = []
    turn: list[float] = []

    def lap(*_: object) -> None:
        nonlocal began
        laps.append(now(device) - began)
        turn.append(laps[-1])
        if len(turn) >= _TURN_ROUNDS and sum(turn) >= _TURN_SECONDS:
            turn.clear()
            _take_turn(connection)
        began = now(device)

    row: Row = {}
    with peak_memory(row):
        cpu, began = time.process_time(), now(device)
        kept = prune(len(x), on_round=lap)
        row |= {"rounds": len(laps), "seconds": sum(laps) + now(device) - began}
        row |= {"cpu_seconds": time.process_time() - cpu}
    row |= dict(zip(("round_low", "round_seconds", "round_high"), quartiles(laps), strict=True))
    row |= {"tensor_mib": round(tensor_peak(device, lambda: prune(len(x), 1)) / MIB, 1), "kept": kept}
    connection.send({name: round(value, 6) for name, value in row.items()})


def _take_turn(connection: Connection) -> None:
    connection.send(None)
    connection.recv()


def measured(labels: Sequence[str], given: dict[str, Any]) -> Iterator[Row]:
    """Rows of the cases, which take turns, in the order in which they end."""
    cases = {label: Process(work, label, given, threads=given["threads"]) for label in labels}
    waiting, begun = list(labels), set[str]()
    try:
        while waiting:
            for label in list(waiting):
                row = _turn(cases[label], begun=label in begun)
                begun.add(label)
                if row is not None:
                    waiting.remove(label)
                    yield {"method": label, **row}
    finally:
        for case in cases.values():
            case.end()


def _turn(case: Process, *, begun: bool) -> Row | None:
    """Let a case work for a turn; its row if it ended."""
    try:
        if begun:
            case.tell()
        row: Row | None = case.answer()
    except CaseFailed as failure:
        return {ERROR: str(failure)}
    return row


def with_ratios(row: Row, plain: Row) -> Row:
    """A row with its ratios to the baseline of the same run."""
    ratios = {"speed_up": "round_seconds", "prune_speed_up": "seconds"}
    known = {name: round(plain[of] / row[of], 2) for name, of in ratios.items() if row.get(of) and plain.get(of)}
    if row.get("tensor_mib") and plain.get("tensor_mib"):
        known["memory_ratio"] = round(row["tensor_mib"] / plain["tensor_mib"], 3)
    return row | known


def draw(table: Table) -> None:
    """A round, the whole prune and peak memory of every case."""
    rows = table.frame()
    if "round_seconds" not in rows or (rows := rows.dropna(subset=["round_seconds"])).empty:
        return
    first = bars(rows, "method", "round_seconds", "seconds a round", ("round_low", "round_high"))
    second = bars(rows, "method", "seconds", "seconds in all")
    save(table.path, first, second, bars(rows, "method", "tensor_mib", "peak of live tensors (MiB)"))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the rows and draw them; 1 if a case failed."""
    parser = arguments(__doc__, "rounds")
    parser.add_argument("--methods", nargs="+", default=list(_METHODS), metavar="NAME[:OPTION=VALUE,...]")
    parser.add_argument("--baseline", choices=list(_BASELINES), default=PLAIN)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=0, help="0 is what the network is for")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--sparsity", type=float, default=0.982)
    given = vars(parser.parse_args(argv))
    labels = list(dict.fromkeys([given["baseline"], *given["methods"]]))
    for label in labels:
        options_of(label)
    table = Table(given.pop("out"), given, given["device"], given["threads"])
    # Rows need that of the baseline, which ends when it ends.
    rows = {row["method"]: row for row in measured(labels, given)}
    about = {name: given[name] for name in ("model", "images", "sparsity")}
    for label in labels:
        table.add(with_ratios({**about, **rows[label]}, rows[labels[0]]))
    draw(table)
    return int(any(ERROR in row for row in table.rows))


if __name__ == "__main__":
    raise SystemExit(command(main))

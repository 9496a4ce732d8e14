"""Run the scorers on the architectures of the zoo and write the rows and the page of the documentation.

python scripts/zoo.py --jobs 16                                  # everything that results/zoo/rows.csv does not have
python scripts/zoo.py --only 'timm:*vit*' --methods px snip      # some of it
python scripts/zoo.py --again refused error                      # once more what did not work
python scripts/zoo.py --page                                     # the page alone, from the rows that are there
python scripts/zoo.py --describe timm:resnet10t resnet 32        # the line of a new architecture for the catalogue

Each architecture runs in a process of its own with one thread, which is started anew if it ends early. Every row has a
time limit.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pathex
from pathex.experiments.runs import environment

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.zoo.catalogue import Architecture, build, catalogue, describe  # noqa: E402
from benchmarks.zoo.table import Row, one_line, page, plan, read_rows, shares, write_rows, write_text  # noqa: E402
from benchmarks.zoo.trial import TimeLimitError, is_known, trial  # noqa: E402

_VARIANT = "per_sample=one"  # tried where a method refuses the network without it
_GRACE = 120.0  # seconds beyond the limit of a row after which a process counts as hanging
_GIB = 2**30


# -- one architecture, in a process of its own -------------------------------------------------------------------------


def work(model: str, wanted: Sequence[tuple[str, int]], limit: float) -> Iterator[Row]:
    """Rows of scorers on one architecture, and of the option of a method that refuses the network without it."""
    architecture = next(entry for entry in catalogue() if entry.model == model)
    try:
        given = build(architecture)
        with torch.no_grad():
            given[0](given[1])
    except Exception as error:  # whatever another version of a library raises
        for label, rounds in wanted:
            yield Row(model, label, rounds, "absent", message=one_line(f"{type(error).__name__}: {error}"))
        return
    for label, rounds in wanted:
        row = _row(model, given, label, rounds, limit)
        yield row
        variant = f"{label}:{_VARIANT}"
        if row.outcome == "refused" and is_known(variant):
            row = _row(model, given, variant, rounds, limit)
            yield row
        if row.outcome not in {"ok", "refused"}:
            given = build(architecture)


def _row(model: str, given: tuple[nn.Module, Tensor, Tensor], label: str, rounds: int, limit: float) -> Row:
    with _time_limit(limit):
        found = trial(*given, label, rounds=rounds)
    dead, layers = ("" if value is None else str(value) for value in (found.dead, found.layers))
    message = one_line(found.message)
    return Row(model, label, rounds, found.outcome, dead, layers, round(found.seconds, 2), message)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- all of them -------------------------------------------------------------------------------------------------------


def attempt(architecture: Architecture, wanted: dict[str, int], limit: float) -> list[Row]:
    """Rows of one architecture, from as many processes as it takes; a scorer that ended one is an error."""
    left, rows = dict(wanted), []
    while left:
        got, end = _process(architecture.model, left, limit)
        rows += got
        for row in got:
            left.pop(row.scorer, None)
        if left:
            label, rounds = next(iter(left.items()))
            rows.append(Row(architecture.model, label, rounds, "error", message=end))
            left.pop(label)
    return rows


def _process(model: str, wanted: dict[str, int], limit: float) -> tuple[list[Row], str]:
    command = [sys.executable, __file__, "--work", json.dumps([model, list(wanted.items()), limit])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **threads}
    )
    rows, hanging = [], threading.Event()

    def kill() -> None:
        hanging.set()
        process.kill()

    assert process.stdout is not None
    watch = threading.Timer(limit + _GRACE, kill)
    watch.start()
    with process.stdout:
        for line in process.stdout:
            watch.cancel()
            if line.startswith("{"):
                rows.append(Row(**json.loads(line)))
            watch = threading.Timer(limit + _GRACE, kill)
            watch.start()
    watch.cancel()
    code = process.wait()
    return rows, "the process did not answer" if hanging.is_set() else f"the process ended with code {code}"


class Room:
    """Bytes that architectures share: each waits until there are enough left, or until nothing else runs."""

    def __init__(self, size: float) -> None:
        self._left, self._size = size, size
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: float) -> Iterator[None]:
        """Take bytes for as long as the context lasts."""
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()


def run(todo: Sequence[tuple[Architecture, dict[str, int]]], rows: list[Row], given: argparse.Namespace) -> None:
    """Run architectures beside each other; whenever one is done, its rows take the place of those that are there."""
    table = {(row.model, row.scorer): row for row in rows}
    lock, room = threading.Lock(), Room(given.memory * _GIB)
    done = 0

    def one(entry: tuple[Architecture, dict[str, int]]) -> None:
        nonlocal done
        architecture, wanted = entry
        # Copies of the weights in both precisions, gradients, scores and the order that the threshold sorts.
        with room.taken(1.5 * _GIB + 80 * architecture.parameters):
            found = attempt(architecture, wanted, given.limit)
        with lock:
            done += 1
            table.update({(row.model, row.scorer): row for row in found})
            write_rows(table.values(), given.out / "rows.csv")
            summary = ", ".join(f"{row.scorer} {row.outcome} {row.seconds:.0f} s" for row in found)
            print(f"[{done}/{len(todo)}] {architecture.model}: {summary}", flush=True)

    # Long ones first, so that none is left alone at the end.
    cost = sorted(todo, key=lambda entry: -len(entry[1]) * (entry[0].multiply_adds + 30 * entry[0].parameters))
    with ThreadPoolExecutor(given.jobs) as pool:
        for _ in pool.map(one, cost):
            pass


def select(rows: Sequence[Row], given: argparse.Namespace) -> list[tuple[Architecture, dict[str, int]]]:
    """Architectures and their scorers with rounds that the command line asks for and the rows do not have."""
    there = {(row.model, row.scorer) for row in rows if row.outcome not in (given.again or ())}
    todo = []
    for architecture in catalogue():
        if not any(fnmatchcase(architecture.model, pattern) for pattern in given.only or ["*"]):
            continue
        wanted = plan(architecture, pathex.methods())
        if given.methods:
            wanted = {label: wanted.get(label, 2) for label in given.methods}
        wanted = {label: rounds for label, rounds in wanted.items() if (architecture.model, label) not in there}
        if wanted:
            todo.append((architecture, wanted))
    return todo


def _versions(about: dict[str, Any]) -> dict[str, Any]:
    return {name: about[name] for name in ("torch", "torchvision", "timm")}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="architectures at a time, one thread each")
    parser.add_argument("--memory", type=float, default=_memory() / _GIB, help="GiB for all of them")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each row")
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="architectures")
    parser.add_argument("--methods", nargs="+", metavar="NAME[:OPTION=VALUE,...]", help="scorers")
    parser.add_argument("--again", nargs="+", metavar="OUTCOME", help="run rows with these outcomes once more")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "zoo", help="folder of the rows")
    parser.add_argument("--page", action="store_true", help="write docs/zoo.md from the rows and do nothing else")
    parser.add_argument("--describe", nargs=3, metavar=("MODEL", "FAMILY", "SMALLEST"), help="line for the catalogue")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    unknown = [label for label in given.methods or () if not is_known(label)]
    if unknown:
        parser.error(f"unknown method or option {unknown[0]!r}. Known: {', '.join(pathex.methods())}")
    return given


def _memory() -> float:
    """Two thirds of the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 2 / 3


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = _arguments(argv)
    if given.work:
        torch.set_num_threads(1)
        for row in work(*json.loads(given.work)):
            print(json.dumps(asdict(row)), flush=True)
        return 0
    if given.describe:
        row = describe(given.describe[0], given.describe[1], int(given.describe[2])).row()
        print(",".join(f'"{text}"' if "," in text else text for text in row.values()))
        return 0
    rows, about = read_rows(given.out / "rows.csv"), given.out / "environment.json"
    if not given.page:
        now = {**environment(torch.device("cpu")), "threads": 1}
        if rows and about.exists() and _versions(json.loads(about.read_text(encoding="utf-8"))) != _versions(now):
            print(f"{about} names other versions; remove the folder or name another one with --out", file=sys.stderr)
            return 2
        todo = select(rows, given)
        write_text(about, json.dumps(now, indent=2) + "\n")
        run(todo, rows, given)
        rows = read_rows(given.out / "rows.csv")
    if given.out == ROOT / "results" / "zoo":
        versions = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {}
        write_text(ROOT / "docs" / "zoo.md", page(rows, versions))
    for scorer, (good, every) in shares(rows).items():
        print(f"{scorer}: {good} of {every} ({100 * good / every:.1f} %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Seconds and peak memory of one round against parameters and images, and of a whole prune against rounds.

Each case runs in a fresh process, one at a time. The slope of a series in a log-log plot is the exponent of its growth:
1 is linear.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import pathex
from pathex import scores
from pathex.bench._measuring import MIB, now, quartiles, resident_peak, start_of_peak, tensor_peak
from pathex.bench._problem import Images, network
from pathex.bench._processes import CaseFailed, Fresh
from pathex.bench._suite import ERROR, Bench, Row, Suite
from pathex.counts import count
from pathex.errors import InvalidInput
from pathex.prunable import prunable_weights

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FIT", "SUITE", "Case", "exponent", "fits"]

FIT = "fit"
"""The kind of row that holds the exponents of a series."""

# What grows along a series, and which columns are fitted against it.
_FITS = MappingProxyType(
    {
        "parameters": (
            ("time_exponent", "parameters", "round_seconds"),
            ("work_exponent", "multiply_adds", "round_seconds"),
            ("memory_exponent", "parameters", "tensor_mib"),
        ),
        "images": (("time_exponent", "images", "round_seconds"), ("memory_exponent", "images", "tensor_mib")),
        "rounds": (("time_exponent", "rounds", "seconds"),),
    }
)


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        against: What grows in its series: ``parameters``, ``images`` or ``rounds``.
        series: Name of the series.
        model: Name of a model.
        images: The pruning set.
        rounds: Rounds of a whole call that is timed; 0: single rounds are timed.
        method: Name of a method.
        sparsity: Fraction of the prunable weights removed.
        memory: Budget of scoring.
        device: The device.
        repeats: Rounds or calls that are timed.
        seed: Seed of weights and images.
    """

    against: str
    series: str
    model: str
    images: Images
    rounds: int
    method: str
    sparsity: float
    memory: int | str
    device: torch.device
    repeats: int
    seed: int


# -- in the process of a case ------------------------------------------------------------------------------------------


def _measure(pipe: Connection, case: Case) -> None:
    """Measure one case and send the row."""
    model, images = network(case.model, case.images, case.seed, case.device)
    x, y = images.drawn(case.seed, case.device)

    def prune(rounds: int, images: int = len(x), on_round: Callable[..., object] | None = None) -> None:
        how: dict[str, Any] = {"sparsity": case.sparsity, "rounds": rounds, "memory": case.memory, "seed": case.seed}
        data = [(x[:images], y[:images])]
        pathex.prune(model, case.method, data=data, progress=False, on_round=on_round, **how)

    counts = count(model, tuple(x.shape[1:]))
    weights = prunable_weights(model).values()
    row: Row = {"image_size": images.size, "parameters": counts.parameters()}
    row |= {"multiply_adds": counts.multiply_adds() * len(x)}
    row |= {"weights_mib": round(sum(weight.nbytes for weight in weights) / MIB, 1)}
    prune(1, len(x) if case.device.type == "cuda" else 1)  # what is set up on first use is not what is measured
    start = start_of_peak()
    if case.rounds:
        row |= {"rounds": case.rounds, **_calls(case, prune)}
    else:
        row |= {"rounds": 1, **_single_rounds(case, prune)}
    row |= {"resident_mib": resident_peak(start)}
    peak = tensor_peak(case.device, lambda: prune(1)) / MIB
    budget = (scores.parse_memory(case.memory) or 0) / MIB
    row |= {"tensor_mib": round(peak, 1), "budget_mib": round(budget, 1), "within_budget": peak <= budget}
    pipe.send(row)


def _calls(case: Case, prune: Callable[..., None]) -> Row:
    """Seconds of whole calls."""
    seconds = []
    for _ in range(case.repeats):
        began = now(case.device)
        prune(case.rounds)
        seconds.append(now(case.device) - began)
    middle = statistics.median(seconds)
    return {"seconds": round(middle, 5), "round_seconds": round(middle / case.rounds, 6)}


def _single_rounds(case: Case, prune: Callable[..., None]) -> Row:
    """Seconds of the rounds of one call after its first, which also sets up what stays for all of them."""
    ends: list[float] = []
    prune(1 + case.repeats, on_round=lambda *_: ends.append(now(case.device)))
    low, middle, high = quartiles(np.diff(ends).tolist())
    return {"round_seconds": round(middle, 6), "round_low": round(low, 6), "round_high": round(high, 6)}


# -- in the process that starts them -----------------------------------------------------------------------------------


def _cases(bench: Bench, options: Mapping[str, Any]) -> list[Case]:
    """All cases, series by series."""
    shared: dict[str, Any] = {"method": options["method"], "sparsity": options["sparsity"], "memory": options["memory"]}
    shared |= {"device": bench.device, "repeats": bench.repeats, "seed": bench.seed}
    one, classes = options["model"], options["classes"]
    cases = []
    for name in options["models"]:
        images = Images(options["images"], options["image_size"] if ":" in name else 0, classes)
        cases.append(Case("parameters", _family(name), name, images, 0, **shared))
    cases.sort(key=lambda case: case.series)  # a stable sort: within a series the order is that of the option
    of_one = Images(options["images"], options["image_size"] if ":" in one else 0, classes)
    cases += [Case("images", one, one, replace(of_one, count=n), 0, **shared) for n in options["image_counts"]]
    cases += [Case("rounds", one, one, of_one, n, **shared) for n in options["round_counts"]]
    return cases


def _family(name: str) -> str:
    """Networks that differ in size only, by the start of their names: ``torchvision:resnet``, ``timm:vit``."""
    match = re.match(r"(?:\w+:)?[a-z]+", name)
    return match[0] if match else name


def _rows(bench: Bench, options: Mapping[str, Any]) -> Iterator[Row]:
    _check(options)
    cases = _cases(bench, options)
    measured: list[Row] = []
    for number, case in enumerate(cases):
        bench.say(f"case {number + 1} of {len(cases)}: {case.model}, {case.images.count} images")
        row: Row = {"kind": "case", "against": case.against, "series": case.series, "model": case.model}
        row |= {"method": case.method, "images": case.images.count, **_measured(case, bench.threads)}
        yield row
        measured.append(row)
        if number + 1 == len(cases) or (cases[number + 1].against, cases[number + 1].series) != (
            case.against,
            case.series,
        ):
            yield from fits(measured)
            measured = []


def _measured(case: Case, threads: int) -> Row:
    process = Fresh(_measure, case, threads=threads)
    try:
        row: Row = process.receive()
    except CaseFailed as failure:
        row = {ERROR: str(failure)}
    finally:
        process.end()
    return row


def _check(options: Mapping[str, Any]) -> None:
    counts = [options["images"], options["classes"], *options["image_counts"], *options["round_counts"]]
    if min(counts) < 1:
        raise InvalidInput(f"images, classes, image counts and round counts must be at least 1, got {min(counts)}")
    if options["image_size"] < 0:
        raise InvalidInput(f"--image-size must be at least 0, got {options['image_size']}")
    if not 0 <= options["sparsity"] < 1:
        raise InvalidInput(f"--sparsity must be a fraction in [0, 1), got {options['sparsity']}")
    scores.find(options["method"])
    scores.parse_memory(options["memory"])


def fits(rows: list[Row]) -> Iterator[Row]:
    """The exponents of a series.

    Args:
        rows: Its rows; those of failed cases do not count.

    Yields:
        One row, if there are at least two different sizes: ``time_exponent`` and ``memory_exponent`` against what
        grows, and for networks ``work_exponent``, the seconds against the multiply-adds of a forward pass.
    """
    rows = [row for row in rows if ERROR not in row]
    against = rows[0]["against"] if rows else "parameters"
    if len({row[against] for row in rows}) < 2:
        return
    first = {name: rows[0][name] for name in ("against", "series", "method")}
    found = {name: exponent([row[x] for row in rows], [row[y] for row in rows]) for name, x, y in _FITS[against]}
    yield {"kind": FIT, **first, **found}


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of the least-squares line through the logarithms.

    Args:
        x: Positive numbers, at least two of them different.
        y: Positive numbers.

    Returns:
        p of ``y = c x^p``.

    Example:
        >>> exponent([1, 2, 4], [3, 12, 48])
        2.0
    """
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3)


def _summary(frame: "pd.DataFrame") -> list[str]:
    lines = []
    for row in frame[frame["kind"] == FIT].to_dict("records"):
        parts = [f"seconds grow with {row['against']}^{row['time_exponent']:.2f}"]
        if row["against"] == "parameters":
            parts.append(f"with multiply-adds^{row['work_exponent']:.2f}")
        if row["against"] != "rounds":
            parts.append(f"peak memory with {row['against']}^{row['memory_exponent']:.2f}")
        lines.append(f"{row['series']}: {', '.join(parts)}")
    cases = frame[frame["kind"] != FIT]
    within = int(cases["within_budget"].astype(bool).sum())
    lines.append(
        f"peak memory within the budget of {cases['budget_mib'].iloc[0]:g} MiB: {within} of {len(cases)} cases"
    )
    return lines


def _plot(frame: "pd.DataFrame", path: Path) -> None:
    from pathex.bench._scale_plot import plot

    plot(frame, path)


_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "models": (
            *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110)),
            *(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101, 152)),
            *(f"timm:vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
        ),
        "images": 10,
        "image_size": 64,
        "classes": 10,
        "model": "resnet20",
        "image_counts": (25, 50, 100, 200, 400),
        "round_counts": (10, 20, 50, 100),
        "method": "px",
        "sparsity": 0.9,
        "memory": "8GiB",
    }
)
SUITE = Suite(
    "scale",
    "a round against parameters and images, a whole prune against rounds, up to 300 M parameters",
    _DEFAULTS,
    _rows,
    _plot,
    MappingProxyType(
        {
            "models": "Networks of growing size, in series by the start of their names.",
            "images": "Images for the networks, and for the rounds.",
            "image_size": "Height and width of the images for networks of libraries; 0 is 224.",
            "classes": "Outputs of the networks.",
            "model": "The network for growing numbers of images and rounds.",
            "image_counts": "Numbers of images.",
            "round_counts": "Numbers of rounds.",
            "method": "A name of pathex methods.",
            "sparsity": "Fraction of the weights removed.",
            "memory": "Budget of scoring, such as 2GiB.",
        }
    ),
    _summary,
)

"""Seconds and peak memory of the rounds of each scorer, against the plain implementation in `_plain`.

Each case runs in a fresh process. The processes take turns of a few rounds, one at a time, so that whatever else the
machine does falls on all of them alike.
"""

import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import yaml

import pathex
from pathex import scores
from pathex.bench._measuring import MIB, now, quartiles, resident_peak, start_of_peak, tensor_peak
from pathex.bench._plain import plain_px
from pathex.bench._problem import Images, network
from pathex.bench._processes import CaseFailed, Fresh
from pathex.bench._suite import ERROR, Bench, Row, Suite
from pathex.errors import InvalidInput, UnknownName

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PLAIN", "SUITE", "Settings", "parse_case", "with_ratios"]

PLAIN = "plain"
_TURN = 5  # rounds, at least
_LASTS = 1.0  # second, at least: what the last case left in the caches is no longer what is measured
# What a label may say to `pathex.prune` beside the options of the method.
_OF_PRUNE = frozenset(
    name
    for name, parameter in inspect.signature(pathex.prune).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
) - {"sparsity", "data", "mask", "progress", "on_round", "group"}
_RATIOS = MappingProxyType({"time_ratio": "round_seconds", "cpu_ratio": "cpu_seconds", "memory_ratio": "tensor_mib"})
_SPEED_UPS = MappingProxyType({"speed_up": "round_seconds", "prune_speed_up": "seconds"})
# What is measured if nothing is said, and on a GPU beside it.
_METHODS = (
    *("px", "px-literal", "px-cvpr24", "synflow", "synflow-l2", "ntk-sap", "snip", "magnitude", "random"),
    *("px:redraw=true", "px:calibration=running", "px:rounds=25"),
)
_ON_GPU = ("px:capture=true", "px:capture=true,tf32=true", "synflow:capture=true")
# How many times faster than the plain implementation a round is to be, and where that was asked for.
_AIMS = MappingProxyType({"px": 1.6, "px-literal": 2.5, "synflow": 20.0})
_AIMS_HOLD = MappingProxyType({"model": "resnet20", "images": 100, "image_size": 32, "device": "cpu"})


@dataclass(frozen=True)
class Settings:
    """What all cases of a run share.

    Attributes:
        model: Name of a model of `pathex.models`.
        images: The pruning set.
        rounds: Score-and-keep rounds.
        sparsity: Fraction of the prunable weights removed, in [0, 1).
        memory: Budget of scoring; None is the choice of `pathex.prune`.
        device: The device.
        repeats: How often each case prunes.
        seed: Seed of weights and images.
    """

    model: str
    images: Images
    rounds: int
    sparsity: float
    memory: int | str | None
    device: torch.device
    repeats: int
    seed: int


def parse_case(label: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What a label such as ``px:redraw=true,rounds=25`` says; checked.

    Args:
        label: Name of a method, and options of the method or of `pathex.prune`; their values are read as YAML.

    Returns:
        Name, options of `pathex.prune`, options of the method.

    Raises:
        InvalidInput: If an option has no value, or is not known.
        UnknownName: If the plain implementation is to have an option, or the method is not known.
    """
    name, _, text = label.partition(":")
    try:
        pairs = yaml.safe_load("{" + text.replace("=", ": ") + "}")
    except yaml.YAMLError:
        pairs = {text: None}
    if missing := [key for key, value in pairs.items() if value is None and f"{key}=" not in text]:
        raise InvalidInput(f"method {label!r}: cannot read {missing[0]!r}; allowed: NAME:OPTION=VALUE,OPTION=VALUE")
    of_prune = {key: value for key, value in pairs.items() if key in _OF_PRUNE}
    options = {key: value for key, value in pairs.items() if key not in _OF_PRUNE}
    if name == PLAIN:
        if unknown := set(pairs) - {"rounds"}:
            raise UnknownName("option of plain:", min(unknown), {"rounds"})
    else:
        scores.find(name).check(options)
    return name, of_prune, options


# -- in the process of a case ------------------------------------------------------------------------------------------


@dataclass
class Pace:
    """Times rounds and hands over to the next case after each turn.

    Attributes:
        pipe: Connection to the process that gives the turns.
        device: The device.
        cpu: Processor time, over all threads, of all that was timed.
        laps: Seconds of each round.
        totals: Seconds of each whole call.
    """

    pipe: Connection
    device: torch.device
    laps: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    _turn: list[float] = field(default_factory=list)
    cpu: float = 0.0

    def around(self, call: Callable[[Callable[..., None]], Any]) -> Any:
        """Time one call, which calls back after each of its rounds.

        Args:
            call: Gets the function to call back.

        Returns:
            What it returns.
        """
        self._total, cpu = 0.0, time.process_time()
        self._began = now(self.device)
        result = call(self._round)
        self.totals.append(self._total + now(self.device) - self._began)
        self.cpu += time.process_time() - cpu
        return result

    def row(self) -> Row:
        """What has been measured so far."""
        low, middle, high = quartiles(self.laps)
        row: Row = {"timed_rounds": len(self.laps)}
        if self.totals:
            row |= {"seconds": round(statistics.median(self.totals), 5)}
            row |= {"cpu_seconds": round(self.cpu / len(self.totals), 5)}
        return row | {"round_seconds": round(middle, 6), "round_low": round(low, 6), "round_high": round(high, 6)}

    def wait(self, message: tuple[Row, bool]) -> None:
        """Say what is known, and wait for the next turn.

        Args:
            message: A row, and whether it is the last word.
        """
        self.pipe.send(message)
        self.pipe.recv()

    def _round(self, *_: object) -> None:
        lap = now(self.device) - self._began
        self.laps.append(lap)
        self._total += lap
        self._turn.append(lap)
        if len(self._turn) >= _TURN and sum(self._turn) >= _LASTS:
            self._turn.clear()
            self.wait((self.row(), False))
        self._began = now(self.device)


def _measure(pipe: Connection, label: str, settings: Settings) -> None:
    """Prune in this process, at the pace that the other end of the pipe sets, and send the row."""
    name, of_prune, options = parse_case(label)
    device = settings.device
    model, images = network(settings.model, settings.images, settings.seed, device)
    x, y = images.drawn(settings.seed, device)

    def prune(count: int, rounds: int | None, on_round: Callable[..., None] | None = None) -> int:
        given: dict[str, Any] = {"rounds": settings.rounds, "seed": settings.seed, "memory": settings.memory}
        given |= of_prune | ({} if rounds is None else {"rounds": rounds})
        if name == PLAIN:
            kept = plain_px(model, x[:count], sparsity=settings.sparsity, rounds=given["rounds"], on_round=on_round)
            return sum(int(entry.sum()) for entry in kept.values())
        given |= {"sparsity": settings.sparsity, "on_round": on_round, "progress": False}
        return pathex.prune(model, name, data=[(x[:count], y[:count])], **given, **options).mask.kept

    # What is loaded and set up on first use is not what is measured. On a GPU that depends on the number of images.
    prune(len(x) if device.type == "cuda" else 2, 1)
    pace = Pace(pipe, device)
    pace.wait(({}, False))
    start = start_of_peak()
    kept = [pace.around(lambda called: prune(len(x), None, called)) for _ in range(settings.repeats)]
    resident = resident_peak(start)
    peak = tensor_peak(device, lambda: prune(len(x), 1))
    memory = {"resident_mib": resident, "tensor_mib": round(peak / MIB, 1)}
    row = pace.row() | memory | {"rounds": len(pace.laps) // settings.repeats, "kept": kept[0]}
    pipe.send((row, True))


# -- in the process that gives the turns -------------------------------------------------------------------------------


def _take_turns(labels: Sequence[str], settings: Settings, bench: Bench) -> Iterator[tuple[str, Row]]:
    """Label and row of every case in order, once it ended; after Ctrl-C what is known of the others too."""
    cases = {label: Fresh(_measure, label, settings, threads=bench.threads) for label in labels}
    known: dict[str, Row] = {label: {} for label in labels}
    waiting, untold, turn = list(labels), list(labels), 0
    try:
        while waiting:
            bench.say(f"turn {turn}: {len(waiting)} of {len(labels)} cases" if turn else "starting")
            for label in list(waiting):
                if turn:
                    cases[label].send(None)
                try:
                    known[label], over = cases[label].receive()
                except CaseFailed as failure:
                    known[label], over = {ERROR: str(failure)}, True
                if over:
                    waiting.remove(label)
            while untold and untold[0] not in waiting:
                label = untold.pop(0)
                yield label, known[label]
            turn += 1
    except KeyboardInterrupt:
        yield from ((label, known[label]) for label in untold if known[label])
        raise
    finally:
        for case in cases.values():
            case.end()


def _rows(bench: Bench, options: Mapping[str, Any]) -> Iterator[Row]:
    settings, labels = _settings(bench, options)
    about = {"model": settings.model, "images": settings.images.count, "image_size": settings.images.size}
    about |= {"sparsity": settings.sparsity, "rounds": settings.rounds, "repeats": settings.repeats}
    plain: Row = {}
    for label, measured in _take_turns(labels, settings, bench):
        row = {"method": label, **about, **measured}
        plain = row if label == PLAIN else plain
        yield with_ratios(row, plain)


def _settings(bench: Bench, options: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    for name in ("images", "classes", "rounds"):
        if options[name] < 1:
            raise InvalidInput(f"--{name} must be at least 1, got {options[name]}")
    if options["image_size"] < 0:
        raise InvalidInput(f"--image-size must be at least 0, got {options['image_size']}")
    if not 0 <= options["sparsity"] < 1:
        raise InvalidInput(f"--sparsity must be a fraction in [0, 1), got {options['sparsity']}")
    methods = tuple(options["methods"])
    if bench.device.type == "cuda" and methods == _METHODS:
        methods += _ON_GPU
    labels = list(dict.fromkeys([PLAIN, *methods]))
    for label in labels:
        parse_case(label)
    scores.parse_memory(options["memory"])
    images = Images(options["images"], options["image_size"], options["classes"])
    _, images = network(options["model"], images, bench.seed, torch.device("cpu"))
    settings = Settings(
        options["model"],
        images,
        options["rounds"],
        options["sparsity"],
        options["memory"],
        bench.device,
        bench.repeats,
        bench.seed,
    )
    return settings, labels


def with_ratios(row: Row, plain: Row) -> Row:
    """A row with its ratios to the plain implementation.

    Args:
        row: The row.
        plain: The row of the plain implementation, of the same run.

    Returns:
        Median round, processor time and peak of tensors over those of ``plain``; and how many times faster a round and
        the whole call are. What either row lacks is left out.
    """
    both = {column for column in row if row[column] and plain.get(column)}
    ratios = {name: round(row[of] / plain[of], 3) for name, of in _RATIOS.items() if of in both}
    return row | ratios | {name: round(plain[of] / row[of], 2) for name, of in _SPEED_UPS.items() if of in both}


def _summary(frame: "pd.DataFrame") -> list[str]:
    lines = []
    asked = all((frame[column] == value).all() for column, value in _AIMS_HOLD.items() if column in frame)
    for row in frame[frame["speed_up"].notna()].to_dict("records") if "speed_up" in frame else []:
        factor, aim = row["speed_up"], _AIMS.get(row["method"])
        if aim is None:
            continue
        wanted = f" (aim: at least {aim:g}, {'reached' if factor >= aim else 'not reached'})" if asked else ""
        lines.append(f"{row['method']}: a round is {factor:.2f} times as fast as the plain one{wanted}")
    return lines


def _plot(frame: "pd.DataFrame", path: Any) -> None:
    from pathex.bench._rounds_plot import plot

    plot(frame, path)


SUITE = Suite(
    "rounds",
    "seconds and memory of the rounds of each method, against a plain implementation of px",
    MappingProxyType(
        {
            "methods": _METHODS,
            "model": "resnet20",
            "images": 100,
            "image_size": 0,
            "classes": 10,
            "rounds": 100,
            "sparsity": 0.982,
            "memory": None,
        }
    ),
    _rows,
    _plot,
    MappingProxyType(
        {
            "methods": "NAME or NAME:OPTION=VALUE,...; options of the method or of pathex.prune (px:rounds=25). If not "
            "given, on a GPU px and synflow with capture=true too.",
            "model": "A name of pathex models.",
            "images": "Images of the pruning set.",
            "image_size": "Their height and width; 0 is 32, 64 for the tiny networks and 224 for those of libraries.",
            "classes": "Outputs of the network.",
            "rounds": "Rounds of every method, also of those that are published with one.",
            "sparsity": "Fraction of the weights removed.",
            "memory": "Budget of scoring, such as 2GiB; null is the choice of pathex.prune.",
        }
    ),
    _summary,
)

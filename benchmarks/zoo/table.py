"""The committed rows of the zoo, what they say in all, and the page of the documentation that shows them."""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pathex
from benchmarks.zoo.catalogue import IMAGES, LEFT_OUT, Architecture, catalogue
from pathex.masks import replacing

__all__ = ["EXTRA", "PAGE", "ROWS", "SIX", "UNTRIED", "Row", "markdown", "page", "plan"]
__all__ += ["read_rows", "shares", "write_rows", "write_text"]

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "results" / "zoo" / "rows.csv"
PAGE = ROOT / "docs" / "zoo.md"
SIX = ("random", "magnitude", "snip", "synflow", "ntk-sap", "px")  # two rounds on every architecture
EXTRA = ("grasp", "ntk-diagonal")  # one round on every architecture
# Methods without rows.
UNTRIED = frozenset({"fisher-taylor", "hutchinson-taylor", "iterative-grasp", "px-cvpr24-v2"})
UNTRIED |= {"cts", "dpai", "edge-popup", "widetopo"}
_SHORT = 300  # characters of a message
_ANY_PATH = re.compile(r"/\S*/(?=[\w.-]+)")
_MODULE = re.compile(r" in module '[^']*'| in the network")
_INTRODUCTION = """---
hide: [navigation, toc]
---

# Zoo

Does a method work on the network at hand? Every constructor of torchvision for classification and segmentation, but for
a few giants, and {timm} architectures of timm, with random weights, {images} images of noise and the smallest side that
each accepts (with attention at least 64 pixels, so that it sees more than one token), are pruned to sparsity 0.9 by six
methods in two rounds, and by `grasp` and `ntk-diagonal` in one; on {all} of them every method runs in two rounds. A
cell is `ok` when the scores of every round are finite, the mask keeps the exact number of weights and the network is
left exactly as it was. `3 dead` is the same, but 3 layers lost every weight on every path: of `px` that would be an
error, of the others it is reported as it is. `refused` is an explicit `UnsupportedOperation`; the reasons stand below.
A star means with `per_sample="one"`, without which the method refuses the network. What a mask is worth after training
is another question.

    python scripts/zoo.py --jobs 16

runs what `results/zoo/rows.csv` does not have yet ({missing} architectures) and writes this page, of {versions}.

In two rounds `synflow` may empty a patch embedding, and with it every path (`test_vit3`, `vit_wee`, `vit_xsmall`: none
is emptied in 20 rounds); its published number of rounds is 100. The rows of `px` and `synflow` everywhere, and of all
other methods but `magnitude` and `random` on 62 architectures, are of the traced networks of this version; the others
are of the version before.
"""


@dataclass(frozen=True)
class Row:
    """What came of a scorer on an architecture.

    Attributes:
        model: Name for `pathex.models.create`.
        scorer: Name of the method, with options as in ``synflow:per_sample=one``.
        rounds: Rounds of scoring.
        outcome: ``ok``, ``refused``, ``timeout``, ``error``, or ``absent`` (the installed library cannot build it).
        dead: Dead layers, as text; empty unless ``ok``.
        layers: Prunable layers, as text; empty unless ``ok``.
        seconds: Wall-clock time on one core.
        message: Reason of a refusal or an error; with ``ok`` what the scorer warned of.
    """

    model: str
    scorer: str
    rounds: int
    outcome: str
    dead: str = ""
    layers: str = ""
    seconds: float = 0.0
    message: str = ""


def plan(architecture: Architecture, known: Sequence[str]) -> dict[str, int]:
    """The scorers of an architecture."""
    if architecture.methods == "all":
        return {name: 2 for name in known if name not in UNTRIED}
    wanted = {**dict.fromkeys(SIX, 2), **dict.fromkeys(EXTRA, 1)}
    return {name: rounds for name, rounds in wanted.items() if name in known}


def one_line(message: str) -> str:
    """A message as a table holds it."""
    text = " ".join(_ANY_PATH.sub("", message).split())
    return text if len(text) <= _SHORT else text[: _SHORT - 4] + " ..."


def read_rows(path: Path = ROWS) -> list[Row]:
    """The rows of a file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [Row(**{field.name: entry[field.name] for field in fields(Row)}) for entry in csv.DictReader(file)]
    return [replace(row, rounds=int(row.rounds), seconds=float(row.seconds)) for row in rows]


def write_rows(rows: Iterable[Row], path: Path = ROWS) -> None:
    """Write rows in the order of the catalogue, each with what the catalogue says of its architecture."""
    about = {architecture.model: architecture for architecture in catalogue()}
    order = {model: number for number, model in enumerate(about)}
    names = [field.name for field in fields(Row)]
    columns = [names[0], "family", "size", "parameters", "multiply_adds", *names[1:]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for row in sorted(rows, key=lambda row: (order[row.model], row.scorer)):
            writer.writerow({**vars(about[row.model]), **vars(row), "seconds": f"{row.seconds:.2f}"})


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def shares(rows: Iterable[Row]) -> dict[str, tuple[int, int]]:
    """How often each scorer works, over the architectures that the installed libraries have."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        if row.outcome != "absent":
            counts[row.scorer][0] += row.outcome == "ok"
            counts[row.scorer][1] += 1
    return {scorer: (good, every) for scorer, (good, every) in sorted(counts.items(), key=_by_method)}


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers stand in the columns whose names end with a colon. Text is escaped, code and links are kept."""
    names = [name.removesuffix(":") for name in header]
    rule = ["---:" if name.endswith(":") else "---" for name in header]
    return f"| {' | '.join(names)} |\n|{'|'.join(rule)}|\n" + "".join(
        f"| {' | '.join(map(str, row))} |\n" for row in rows
    )


def page(rows: Sequence[Row], environment: Mapping[str, Any]) -> str:
    """The page of the documentation."""
    architectures = catalogue()
    there = {row.model for row in rows}
    everywhere = [name for name in (*SIX, *EXTRA) if any(row.scorer == name for row in rows)]
    others = [name for name in shares(rows) if name not in everywhere and ":" not in name]
    tried = {row.model for row in rows if row.scorer in others}
    libraries = [name for name in ("torch", "torchvision", "timm") if name in environment]
    introduction = _INTRODUCTION.format(
        timm=sum(architecture.model.startswith("timm:") for architecture in architectures),
        images=IMAGES,
        all=sum(architecture.methods == "all" for architecture in architectures),
        missing=sum(architecture.model not in there for architecture in architectures),
        versions=", ".join(f"{name} {environment[name]}" for name in libraries) or "no environment yet",
    )
    parts = {
        "In all": _summary(rows),
        "Every architecture": _grid(architectures, everywhere, rows),
        "Other methods": _grid([each for each in architectures if each.model in tried], others, rows),
        "Reasons of refusals and errors": _reasons(rows),
        "Left out": markdown(("architecture", "reason"), [(f"`{model}`", why) for model, why in LEFT_OUT.items()]),
    }
    sections = (f'## {title}\n\n<div class="rows" markdown>\n\n{text}\n</div>\n' for title, text in parts.items())
    return "\n".join((introduction, *sections))


def _summary(rows: Sequence[Row]) -> str:
    outcomes = ("ok", "refused", "timeout", "error", "absent")
    lines = []
    for scorer, (good, every) in shares(rows).items():
        own = [row for row in rows if row.scorer == scorer]
        counts = Counter(row.outcome for row in own)
        dead = sum(row.dead not in {"", "0"} for row in own)
        # Rounded down: 100 % means all.
        share = f"{int(1000 * good / every) / 10:.1f} %" if every else ""
        lines.append((f"`{scorer}`", *(counts[outcome] for outcome in outcomes), share, dead))
    return markdown(("method", *(f"{outcome}:" for outcome in outcomes), "works on:", "with dead layers:"), lines)


def _grid(architectures: Sequence[Architecture], scorers: Sequence[str], rows: Sequence[Row]) -> str:
    cells = {}
    for row in sorted(rows, key=lambda row: row.scorer):  # with an option, where the method is refused without it
        name, _, option = row.scorer.partition(":")
        cells[row.model, name] = _cell(row) + (" *" if option else "")
    lines = []
    for each in architectures:
        shown = [cells.get((each.model, scorer), "") for scorer in scorers]
        lines.append((f"`{each.model}`", each.size, f"{each.parameters / 1e6:.1f}", *shown))
    return markdown(("architecture", "side:", "million parameters:", *scorers), lines)


def _cell(row: Row) -> str:
    return f"{row.dead} dead" if row.outcome == "ok" and row.dead != "0" else row.outcome


def _reasons(rows: Sequence[Row]) -> str:
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row.outcome in {"refused", "error", "timeout", "absent"}:
            found[row.scorer, row.outcome, reason_of(row.message)].append(row.model)
    lines = []
    for (scorer, outcome, reason), models in sorted(found.items(), key=_by_method):
        text = reason.replace("|", "\\|").replace("<", "&lt;")
        lines.append((f"`{scorer}`", outcome, text, ", ".join(f"`{model}`" for model in models)))
    return markdown(("method", "outcome", "reason", "architectures"), lines)


def reason_of(message: str) -> str:
    """A message without the place in the network, so that equal reasons of several networks are one."""
    return _MODULE.sub("", message)


def _by_method(item: tuple[Any, Any]) -> tuple[int, str]:
    """Methods in the order of pathex, each before its variants."""
    scorer = item[0] if isinstance(item[0], str) else item[0][0]
    names = pathex.methods()
    name = scorer.partition(":")[0]
    return (names.index(name) if name in names else len(names), str(item[0]))

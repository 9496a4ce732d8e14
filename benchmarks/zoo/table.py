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

__all__ = ["EXTRA", "PAGE", "ROWS", "SIX", "Row", "page", "plan", "read_rows", "shares", "write_rows", "write_text"]

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "results" / "zoo" / "rows.csv"
PAGE = ROOT / "docs" / "zoo.md"
SIX = ("random", "magnitude", "snip", "synflow", "ntk-sap", "px")  # two rounds on every architecture
EXTRA = ("grasp", "ntk-diagonal")  # one round on every architecture
_SHORT = 300  # characters of a message
_ANY_PATH = re.compile(r"/\S*/(?=[\w.-]+)")
_MODULE = re.compile(r" in module '[^']*'| in the network")
_INTRODUCTION = """# Zoo

Does a method work on the network at hand? Every constructor of torchvision for classification and segmentation, but for
a few giants, and {timm} architectures of timm, with random weights, {images} images of noise and the smallest side that
each accepts (with attention at least 64 pixels, so that it sees more than one token), are pruned to sparsity 0.9 by six
methods in two rounds, and by `grasp` and `ntk-diagonal` in one; on {all} of them every method runs in two rounds. A
cell is `ok` when the scores of every round are finite, the mask keeps the exact number of weights and the network is
left exactly as it was. `ok, 3 dead` adds that 3 layers lost every weight on every path: of `px` that would be an error,
of the others it is reported as it is. `refused` is an explicit `UnsupportedOperation`; the reasons stand below. What a
mask is worth after training is another question.

    python scripts/zoo.py --jobs 16

runs what `results/zoo/rows.csv` does not have yet and writes this page. The rows are of {versions}.

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
        return dict.fromkeys(known, 2)
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


def page(rows: Sequence[Row], environment: Mapping[str, Any]) -> str:
    """The page of the documentation."""
    architectures = catalogue()
    everywhere = [name for name in (*SIX, *EXTRA) if any(row.scorer == name for row in rows)]
    libraries = [name for name in ("torch", "torchvision", "timm") if name in environment]
    introduction = _INTRODUCTION.format(
        timm=sum(architecture.model.startswith("timm:") for architecture in architectures),
        images=IMAGES,
        all=sum(architecture.methods == "all" for architecture in architectures),
        versions=", ".join(f"{name} {environment[name]}" for name in libraries) or "no environment yet",
    )
    every = [architecture for architecture in architectures if architecture.methods == "all"]
    others = [name for name in shares(rows) if name not in everywhere]
    parts = [
        introduction,
        _missing(architectures, rows),
        "## In all\n",
        _summary(rows),
        "## Every architecture\n",
        _grid(architectures, everywhere, rows),
        "## Other methods and options\n",
        _grid([*every, *_refused_variants(architectures, others, rows)], others, rows),
        "## Reasons of refusals and errors\n",
        _reasons(rows),
        "## Left out\n",
        "\n".join(f"- `{model}`: {reason}" for model, reason in LEFT_OUT.items()) + "\n",
    ]
    return "\n".join(parts)


def _missing(architectures: Sequence[Architecture], rows: Sequence[Row]) -> str:
    there = {row.model for row in rows}
    missing = sum(architecture.model not in there for architecture in architectures)
    if not missing:
        return ""
    have = f"{missing} of {len(architectures)} architectures have no rows yet"
    return f"The small ones went first: {have}; their cells are empty.\n"


def _refused_variants(
    architectures: Sequence[Architecture], others: Sequence[str], rows: Sequence[Row]
) -> list[Architecture]:
    """The architectures, not among those of all methods, on which a method was tried again with an option."""
    tried = {row.model for row in rows if row.scorer in others}
    return [a for a in architectures if a.methods != "all" and a.model in tried]


def _summary(rows: Sequence[Row]) -> str:
    outcomes = ("ok", "refused", "timeout", "error", "absent")
    lines = ["| method | " + " | ".join(outcomes) + " | works on | with dead layers |", "|---" + "|---:" * 7 + "|"]
    for scorer, (good, every) in shares(rows).items():
        own = [row for row in rows if row.scorer == scorer]
        counts = Counter(row.outcome for row in own)
        dead = sum(row.dead not in {"", "0"} for row in own)
        # Rounded down: 100 % means all.
        share = f"{int(1000 * good / every) / 10:.1f} %" if every else ""
        cells = [f"`{scorer}`", *(str(counts[outcome]) for outcome in outcomes), share, str(dead)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _grid(architectures: Sequence[Architecture], scorers: Sequence[str], rows: Sequence[Row]) -> str:
    cells = {(row.model, row.scorer): row for row in rows}
    lines = [
        "| architecture | side | million parameters | " + " | ".join(f"`{scorer}`" for scorer in scorers) + " |",
        "|---|---:|---:" + "|---" * len(scorers) + "|",
    ]
    for architecture in architectures:
        shown = [_cell(cells.get((architecture.model, scorer))) for scorer in scorers]
        million = f"{architecture.parameters / 1e6:.1f}"
        lines.append(f"| `{architecture.model}` | {architecture.size} | {million} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"ok, {row.dead} dead" if row.outcome == "ok" and row.dead != "0" else row.outcome


def _reasons(rows: Sequence[Row]) -> str:
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row.outcome in {"refused", "error", "timeout", "absent"}:
            found[row.scorer, row.outcome, reason_of(row.message)].append(row.model)
    if not found:
        return "None.\n"
    lines = ["| method | outcome | reason | architectures |", "|---|---|---|---|"]
    for (scorer, outcome, reason), models in sorted(found.items(), key=_by_method):
        text = reason.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{scorer}` | {outcome} | {text} | {', '.join(f'`{model}`' for model in models)} |")
    return "\n".join(lines) + "\n"


def reason_of(message: str) -> str:
    """A message without the place in the network, so that equal reasons of several networks are one."""
    return _MODULE.sub("", message)


def _by_method(item: tuple[Any, Any]) -> tuple[int, str]:
    """Methods in the order of pathex, each before its variants."""
    scorer = item[0] if isinstance(item[0], str) else item[0][0]
    names = pathex.methods()
    name = scorer.partition(":")[0]
    return (names.index(name) if name in names else len(names), str(item[0]))

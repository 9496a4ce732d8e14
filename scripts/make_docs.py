"""Write what the pages of the documentation take from the code, the committed rows and each other, between its marks.

python scripts/make_docs.py
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

import pathex
from pathex.experiments.report.tables import estimate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.zoo.table import markdown, write_text  # noqa: E402

DOCS, ROWS = ROOT / "docs", ROOT / "benchmarks" / "rows"
SEEDS = {  # rows of single seeds: setting, columns of method and metric, column that tells how much is removed or left
    "fewer_rounds-fashion-accuracy": ("fashion-mini, ResNet-20 (width 8), ways of px", "case", "accuracy", "sparsity"),
    "equal_multiply_adds": ("fashion-mini, ResNet-20 (width 8), what px counts", "count", "accuracy", "share"),
    "equal-milliseconds": ("fashion-mini, ResNet-20, narrower and int8", "network", "accuracy", None),
    "lite0": ("Ten classes of ImageNet, pre-trained EfficientNet-Lite0", "method", "accuracy", "sparsity"),
    "structured": ("The same, whole channels removed", "method", "accuracy", "removed"),
}
VOC = "110 images of VOC2012, DeepLabV3+ on MobileNetV2, {} weights, mean IoU"
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
_CARD = re.compile(r"^- \*\*Against the original code:\*\* (.*)$", re.MULTILINE)
_DERIVED = ("-summary", "-accuracy", "-spectra")


def methods(link: str) -> str:
    """All methods as a table, with links to their pages in a folder."""
    rows = []
    for name in pathex.methods():
        method = pathex.methods(name)
        paper = _ARXIV.search(method.citation)
        source = f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else ""
        rows.append((f"[`{name}`]({link}/{name}.md)", method.title, method.needs, method.rounds, source))
    return markdown(["name", "method", "reads", "rounds:", "paper"], rows)


def deviations() -> str:
    """What the page of each method says of the code that it comes from."""
    cards = [(name, (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")) for name in pathex.methods()]
    rows = [(f"[`{name}`](methods/{name}.md)", *_CARD.findall(text)) for name, text in cards]
    return markdown(["method", "differs in"], rows)


def measured(source: str, title: str, frame: pd.DataFrame, method: str, metric: str, removed: str | None) -> str:
    """The table of a setting: means and intervals over seeds."""
    by = [method, *([removed] if removed else [])]
    rows = []
    for key, group in frame.fillna({method: "dense"}).groupby(by, sort=False):
        found = estimate((100 * group.groupby("seed")[metric].mean()).tolist())
        interval = f"{found.low:.1f} to {found.high:.1f}" if found.n > 1 else ""
        rows.append((*map(_shown, key), f"{found.mean:.2f}", interval, found.n))
    rows.sort(key=lambda row: -float(row[-3]))
    header = ["method", *([f"{removed}:"] if removed else []), "mean:", "95 % interval", "seeds:"]
    return _section(title, header, rows, f"Rows: `{source}`.\n\n")


def own() -> str:
    """Every setting that has been trained here."""
    parts = []
    for path in sorted((ROOT / "results").glob("*/table.csv")):
        frame = pd.read_csv(path)
        for key, rows in frame.groupby(["data", "model", "epochs"]):
            title, source = "{}, {}, {} epochs".format(*key), f"results/{path.parent.name}/table.csv"
            parts.append(measured(source, title, rows, "series", "test_accuracy", "sparsity"))
    for name, (title, *columns) in SEEDS.items():
        parts.append(measured(f"benchmarks/rows/{name}.csv", title, pd.read_csv(ROWS / f"{name}.csv"), *columns))
    for start, rows in pd.read_csv(ROOT / "results" / "voc-subset" / "rows.csv").groupby("init"):
        source = "results/voc-subset/rows.csv"
        parts.append(measured(source, VOC.format(start), rows, "method", "test_miou", "sparsity"))
    return "\n".join(parts)


def published() -> str:
    """Every setting of `published.csv`."""
    frame = pd.read_csv(Path(pathex.experiments.report.__file__).with_name("published.csv")).dropna(subset="value")
    columns = ["method", "sparsity", "value", "std", "source", "reading"]
    header = ["method", "sparsity:", "value:", "deviation:", "source", "reading"]
    parts = []
    for (task, *setting), rows in frame.groupby(["task", "data", "model", "weights"], sort=False):
        title = "{}, {}, {} weights".format(*setting) + (", mean IoU" if task == "segmentation" else "")
        shown = rows[columns].sort_values("value", ascending=False)
        parts.append(_section(title, header, _cells(shown.assign(value=100 * shown["value"], std=100 * shown["std"]))))
    return "\n".join(parts)


def measurements() -> str:
    """Rows of seconds, bytes and agreement, without the columns that say the same in every row."""
    parts = []
    for path in sorted(ROWS.glob("*.csv")):
        if path.stem in SEEDS or path.stem.endswith(_DERIVED):
            continue
        frame = pd.read_csv(path).dropna(axis="columns", how="all")
        same = {name: frame[name].iloc[0] for name in frame if frame[name].nunique(dropna=False) == 1 < len(frame)}
        told = ", ".join(f"{name} {value}" for name, value in same.items())
        rest = frame.drop(columns=list(same))
        header = [f"{name}:" if pd.api.types.is_numeric_dtype(rest[name]) else name for name in rest]
        parts.append(_section(path.stem, header, _cells(rest), f"In every row: {told}.\n\n" if told else ""))
    return "\n".join(parts)


def _shown(cell: object) -> object:
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def _cells(frame: pd.DataFrame) -> list[list[object]]:
    return [[_shown(cell) for cell in row] for row in frame.astype(object).where(frame.notna(), "").values.tolist()]


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], told: str = "") -> str:
    return f'### {title}\n\n{told}<div class="rows" markdown>\n\n{markdown(header, rows)}\n</div>\n'


PARTS: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"methods": partial(methods, "docs/methods")},
    DOCS / "methods.md": {"methods": partial(methods, "methods")},
    DOCS / "deviations.md": {"deviations": deviations},
    DOCS / "results.md": {"own": own, "published": published},
    DOCS / "measurements.md": {"measurements": measurements},
}


def renewed(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """A page with its parts brought up to date; `ValueError` if the marks of one are not there."""
    for name, make in parts.items():
        begin, end = f"<!-- {name}: made by scripts/make_docs.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page lacks the marks {begin.strip()} and {end}")
        text = f"{before}{begin}{make()}{end}{after}"
    return text


if __name__ == "__main__":
    for page, parts in PARTS.items():
        write_text(page, renewed(page.read_text(encoding="utf-8"), parts))

"""Write what the documentation takes from the code: a page for each method, and tables of all of them.

python scripts/make_docs.py
"""

import html
import re
from pathlib import Path

import pathex
from pathex import scores

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"

_BEGIN, _END = "<!-- methods: made by scripts/make_docs.py -->", "<!-- end of methods -->"
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")
_LINES = {
    "citation": "Source",
    "summed": "Sums",
    "needs": "Reads of the data",
    "batchnorm": "BatchNorm",
    "rounds": "Rounds",
    "cost": "Cost of a round",
    "holds_for": "Holds for",
    "differences": "Against the original code",
    "checked": "Checked by",
}
_INTRODUCTION = """# Methods

Every name below works in `pathex.prune`, `pathex.score`, `pathex run` and `pathex prune`. A card says what a score is,
what it reads, what it costs, and what is known to differ from the code it comes from. `pathex.methods("px")` gives the
same card in Python, `pathex methods px` on the command line. Other methods can be [added](guides/own-scorer.md).

On the pages, `n` is an image, `k` an output, `p` a path, `j` a weight, `R` what a method sums; a higher score means
keep. A method reads the labels or the images of the pruning set, or nothing but their shape.
"""
_BESIDE = """
## Options of all

Methods share the options that make sense for them, under one name each: `calibration` (what BatchNorm uses), `redraw`
(weights drawn anew in each round), `scales` (parameters that start at zero), `output` (which of several outputs
counts). Where weights may go (`allocation`, `min_per_layer`, `budget`), which modules are pruned (`ignore`,
`prunable`), how density falls (`schedule`, `rounds`) and a mask to start from belong to `pathex.prune` itself, so they
work with every method. One pruning set serves all.

| name | BatchNorm while scoring | cost of a round |
|---|---|---|
"""


def table(link: str) -> str:
    """All methods as a Markdown table.

    Args:
        link: Folder of the pages, as seen from the table.

    Returns:
        The lines, with a final newline.
    """
    lines = ["| name | method | reads | rounds | paper |", "|---|---|---|---:|---|"]
    for name in pathex.methods():
        card = pathex.methods(name)
        paper = _ARXIV.search(card.citation)
        source = f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else ""
        lines.append(f"| [`{name}`]({link}/{name}.md) | {card.title} | {card.needs} | {card.rounds} | {source} |")
    return "\n".join(lines) + "\n"


def card(name: str) -> str:
    """The card of a method.

    Args:
        name: Name of the method.

    Returns:
        A page of Markdown.
    """
    method = scores.find(name)
    about = method.card
    equations = re.sub(r", (\w+ = )", r"\n    \1", about.equation)
    lines = [f"# {name}", "", f"{about.title}.", "", f"    {equations}", ""]
    for field, title in _LINES.items():
        text = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", _escaped(str(getattr(about, field))))
        lines.append(f"- **{title}:** {text}")
    if about.options:
        lines += ["", "| option | default | meaning |", "|---|---|---|"]
        for option, default in method.defaults.items():
            meaning = _escaped(about.options[option]).replace("|", "\\|")
            lines.append(f"| `{option}` | `{default!r}` | {meaning} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """The page of all methods and the page of each.

    Returns:
        File to text.
    """
    cards = {name: pathex.methods(name) for name in pathex.methods()}
    rows = [f"| `{name}` | {_cell(about.batchnorm)} | {_cell(about.cost)} |\n" for name, about in cards.items()]
    whole = "".join([_INTRODUCTION, "\n", table("methods"), _BESIDE, *rows])
    return {DOCS / "methods.md": whole, **{DOCS / "methods" / f"{name}.md": card(name) for name in cards}}


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def readme(text: str) -> str:
    """The README with its table of methods brought up to date.

    Args:
        text: The README.

    Returns:
        The new text.

    Raises:
        ValueError: If the marks of the table are not there.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {_BEGIN} and {_END}")
    return f"{before}{begin}\n{table('docs/methods')}{end}{after}"


def _escaped(text: str) -> str:
    """Text of a card, in which stars, underscores and angle brackets are meant as they are."""
    return re.sub(r"([*_])", r"\\\1", html.escape(text, quote=False))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    (DOCS / "methods").mkdir(exist_ok=True)
    made = pages()
    for path in (DOCS / "methods").glob("*.md"):
        if path not in made:
            path.unlink()
    for path, text in made.items():
        _write(path, text)
    _write(README, readme(README.read_text(encoding="utf-8")))
    print(f"wrote {len(made)} pages and the table of {README.name}")

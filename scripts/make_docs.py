"""Write what the documentation takes from the code: the table of all methods, in the README and in docs/methods.md.

python scripts/make_docs.py
"""

import re
from pathlib import Path

import pathex

ROOT = Path(__file__).resolve().parent.parent
LINKS = {ROOT / "README.md": "docs/methods", ROOT / "docs" / "methods.md": "methods"}

_BEGIN, _END = "<!-- methods: made by scripts/make_docs.py -->", "<!-- end of methods -->"
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def table(link: str) -> str:
    """All methods as a Markdown table.

    Args:
        link: Folder of the pages, as seen from the table.

    Returns:
        The lines, with a final newline.
    """
    lines = ["| name | method | reads | rounds | paper |", "|---|---|---|---:|---|"]
    for name in pathex.methods():
        method = pathex.methods(name)
        paper = _ARXIV.search(method.citation)
        source = f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else ""
        lines.append(f"| [`{name}`]({link}/{name}.md) | {method.title} | {method.needs} | {method.rounds} | {source} |")
    return "\n".join(lines) + "\n"


def renewed(text: str, link: str) -> str:
    """A page with its table of methods brought up to date.

    Args:
        text: The page.
        link: Folder of the methods' own pages, as seen from this one.

    Returns:
        The new text.

    Raises:
        ValueError: If the marks of the table are not there.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {_BEGIN} and {_END}")
    return f"{before}{begin}\n{table(link)}{end}{after}"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    for page, link in LINKS.items():
        _write(page, renewed(page.read_text(encoding="utf-8"), link))
        print(f"wrote the table of {page.name}")

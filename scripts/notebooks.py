"""Hook of mkdocs: every page in docs/examples/ is there as a notebook too, with a link to it."""

from typing import Any

import jupytext
from mkdocs.structure.files import File, Files

FOLDER = "examples/"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def on_files(files: Files, config: Any) -> Files:
    """Add a notebook for each example."""
    for page in [file for file in files.documentation_pages() if file.src_uri.startswith(FOLDER)]:
        notebook = jupytext.reads(page.content_string, fmt="md")
        notebook.metadata["kernelspec"] = KERNEL
        name = page.src_uri.removesuffix("md") + "ipynb"
        files.append(File.generated(config, name, content=jupytext.writes(notebook, fmt="ipynb")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the link behind the title of an example."""
    if not page.file.src_uri.startswith(FOLDER):
        return markdown
    link = f"[Download as a notebook]({page.file.name}.ipynb){{ .md-button download }}"
    return markdown.replace("\n\n", f"\n\n{link}\n\n", 1)

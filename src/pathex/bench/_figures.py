"""What the plots of all suites share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from pathex.report._panel import picture
from pathex.report._style import INK, SETTINGS
from pathex.train import replacing

__all__ = ["INK", "save", "styled"]


@contextmanager
def styled() -> Iterator[None]:
    """Draws in the style of the reports."""
    with mpl.rc_context(dict(SETTINGS)):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and SVG; each file appears whole or not at all.

    Args:
        figure: The figure, drawn within :func:`styled`, in which this call belongs too.
        path: The files without their suffix.
    """
    files = picture(figure, path.name, "", "")
    for suffix, content in ((".png", files.png), (".svg", files.svg)):
        with replacing(path.with_name(path.name + suffix)) as temporary:
            temporary.write_bytes(content)

"""Charts as files and in pages, by Vega as vl-convert brings it: no network is needed."""

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from pathex.errors import check_name, refusing
from pathex.figures.forms import UNIQUE, WIDTH
from pathex.files import write_bytes

_KINDS = (".png", ".svg")


def save(path: str | os.PathLike[str], *charts: alt.LayerChart, across: bool = False) -> None:
    """Writes charts as one file, PNG or SVG by its ending, below each other or ``across`` it.

    Raises:
        UnknownName: If the ending is another one.
        InvalidInput: If the file cannot be written.
    """
    path = Path(path)
    check_name("ending of a figure", path.suffix, _KINDS)
    with refusing(f"cannot write the figure {path}: {{}}", OSError):
        write_bytes(path, painted(*charts, across=across)[_KINDS.index(path.suffix)])


def painted(*charts: alt.LayerChart, across: bool = False) -> tuple[bytes, bytes]:
    """Charts as PNG and as SVG, black on white; the same charts give the same bytes."""
    spec: dict[str, Any] = charts[0].to_dict()
    if len(charts) > 1:
        parts = [_part(chart, number, len(charts) if across else 1) for number, chart in enumerate(charts)]
        datasets = {name: rows for part in parts for name, rows in part.pop("datasets").items()}
        spec = {"$schema": spec["$schema"], "config": spec["config"], "datasets": datasets}
        spec["hconcat" if across else "vconcat"] = parts
        spec["resolve"] = {"scale": dict.fromkeys(("color", "shape", "strokeDash"), "independent")}
    spec["config"] = {**spec["config"], "background": "white"}
    numbers: dict[str, str] = {}  # Vega goes on counting from one picture to the next
    svg = re.sub(
        r"""(["#])(clip|gradient_)(\d+)(?=["\)])""",
        lambda found: f"{found[1]}{found[2]}{numbers.setdefault(found[3], str(len(numbers)))}",
        vl_convert.vegalite_to_svg(spec),
    )
    return vl_convert.vegalite_to_png(spec, scale=2), svg.encode()


def _part(chart: alt.LayerChart, number: int, columns: int) -> dict[str, Any]:
    """One of several charts of a file."""
    spec = {name: value for name, value in chart.to_dict().items() if name not in {"$schema", "config"}}
    return _renamed(spec, number) | {"width": WIDTH // columns}


def _renamed(node: Any, number: int) -> Any:
    """With names of its own for what must be named once."""
    if isinstance(node, dict):
        return {name: _renamed(value, number) for name, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value, number) for value in node]
    return f"{node}{number}" if node in UNIQUE else node


@cache
def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as text for a script element; it defines ``vegaEmbed``."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def embedded(chart: alt.LayerChart, description: str) -> str:
    """A chart as the argument of ``vegaEmbed`` in a script element, as wide as its place in the page."""
    spec = {**chart.to_dict(), "width": "container", "description": description}
    del spec["$schema"]  # an address
    return json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")

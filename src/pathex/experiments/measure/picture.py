"""The milliseconds of a network, engine by engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pathex.figures import GREY, Style, dots, save

_LOOKS = (Style(GREY), Style("#0072B2", "diamond"))  # what computes every weight, and what the mask leaves


def draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws the rows of `latency`, a chart for each batch and number of threads, as PNG or SVG by the ending."""
    table = pd.DataFrame([row for row in rows if "milliseconds" in row])
    table = table.rename(columns={"engine": "series", "milliseconds": "mean"})
    charts = []
    for (batch, threads), own in table.groupby(["batch_size", "threads"], sort=False):
        charts.append(
            dots(
                own[["series", "mean", "low", "high"]],
                x_title=f"milliseconds a batch of {batch}, {threads} thread{'s' * (threads > 1)}. {title}",
                look={name: _LOOKS[name in {"compact", "sparse"}] for name in own["series"]},
                frame=(0.0, 1.1 * own["high"].max()),
                number=".3~g",
            )
        )
    save(path, *charts)

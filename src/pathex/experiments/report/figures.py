"""The figures of one experiment."""

from itertools import product
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from pathex.experiments.report.curves import SHOWN, SPARSER, main_figure, percent
from pathex.experiments.report.panel import Panel, Picture, seeds_said
from pathex.experiments.report.tables import metric_label, summary_table
from pathex.figures import DASHED, curves, dots, flow, heat_map, level, matrix

_PARTS = {"zero_shot": "zero-shot", "fine_tuned": "after fine-tuning"}
_BYTES = 2**15  # of each mask, unpacked at a time


def draw(panel: Panel) -> list[Picture]:
    """Draws every figure that the runs have numbers for."""
    pictures: list[Picture] = []
    if panel.runs["zero_shot"].notna().any():
        pictures.append(_transfer(panel))
    elif not panel.pruned.empty:
        pictures.append(main_figure(panel))
    if not panel.pruned.empty:
        masked = panel.sparsest[[bool(panel.records[run].layers) for run in panel.sparsest["run"]]]
        pictures += [_layers(panel, masked), *_widths(panel, masked)] if len(masked) else []
        pictures += _overlap(panel, masked)
        pictures += [_dead_layers(panel)] if panel.pruned["dead_layers"].any() else []
    if any(len(record.epochs) > 1 for record in panel.records.values()):
        pictures += _training(panel)
    return pictures


def _layers(panel: Panel, rows: pd.DataFrame) -> Picture:
    names = list(panel.records[rows["run"].iloc[0]].layers)
    cells = []
    for name in panel.series(rows):
        masks = [panel.records[run].layers for run in rows.loc[rows["series"] == name, "run"]]
        for index, layer in enumerate(names):
            density = [mask[layer][0] / mask[layer][1] for mask in masks if layer in mask]
            label = _label(index, layer)
            cells += [{"series": name, "layer": label, "value": float(np.mean(density))}] if density else []
    frame, sparsity = pd.DataFrame(cells), rows["sparsity"].iloc[0]
    caption = f"Mean over seeds at sparsity {sparsity:.6g}, layers from input to output, colours on a log scale; "
    caption += f"the whole network has density {1 - sparsity:.4g}."
    if (frame["value"] == 0).any():
        caption += " A cross is a layer that lost every weight in every seed."
    chart = heat_map(frame, "layer", "series", label="density (fraction of weights kept)", log=True)
    return Picture("layers", "Density of each layer", caption, (chart,))


def _label(index: int, layer: str) -> str:
    return f"{index}  {layer.removesuffix('.weight')}"


def _widths(panel: Panel, rows: pd.DataFrame) -> list[Picture]:
    """How many channels a ticket leaves, from layer to layer."""
    cells = [
        (series, _label(index, layer), *counts)
        for run, series in zip(rows["run"], rows["series"], strict=True)
        for index, (layer, counts) in enumerate(panel.records[run].channels.items())
    ]
    frame = pd.DataFrame(cells, columns=["series", "layer", "kept", "total"])
    if frame.empty:
        return []
    means = _in_order(panel, frame.groupby(["series", "layer"], sort=False).mean().reset_index())
    look = {name: panel.look[name] for name in panel.series(means)}
    caption = "Output channels of which a weight lies on a path from input to output, in front of all there are, mean "
    caption += f"over seeds at sparsity {rows['sparsity'].iloc[0]:.6g}. The number is that of the narrowest layer."
    return [Picture("channels", "Channels that are left", caption, (flow(means, look=look),))]


def _overlap(panel: Panel, rows: pd.DataFrame) -> list[Picture]:
    """How many weights the masks of methods and seeds share, over the tensors that all of them cover."""
    rows = _in_order(panel, rows.drop_duplicates(["series", "seed"]).sort_values("seed"))
    masks = [panel.records[run] for run in rows["run"]]
    tensors = [{(name, total) for name, (_, total) in mask.layers.items()} for mask in masks]
    if len(masks) < 2 or not (shared := set.intersection(*tensors)):
        return []
    bits = np.stack([record.kept([name for name, _ in sorted(shared)]) for record in masks])
    both = np.zeros((len(bits), len(bits)))
    for start in range(0, bits.shape[1], _BYTES):
        part = np.unpackbits(bits[:, start : start + _BYTES], axis=1).astype(np.float32)
        both += part @ part.T
    either = np.diag(both)[:, None] + np.diag(both) - both
    values = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    names = [f"{series}, seed {seed}" for series, seed in zip(rows["series"], rows["seed"], strict=True)]
    cells = pd.DataFrame(product(names, names), columns=["second", "first"]).assign(value=values.ravel())
    density = 1 - rows["sparsity"].iloc[0]
    caption = "Of the weights that one or both of two masks keep, the fraction that both keep, at sparsity "
    caption += f"{1 - density:.6g}, colours on a log scale. Two masks drawn at random would share "
    caption += f"{density / (2 - density):.2g}." + (" A cross: they share none." if (values == 0).any() else "")
    return [Picture("overlap", "Overlap of the masks", caption, (matrix(cells),))]


def _dead_layers(panel: Panel) -> Picture:
    means = panel.pruned.groupby(["series", "sparsity"])["dead_layers"].mean().rename("value").reset_index()
    means["sparsity"] = means["sparsity"].map("{:.6g}".format)
    chart = heat_map(_in_order(panel, means), "sparsity", "series", label="dead layers")
    caption = "Layers without a kept weight on any path from input to output, mean over seeds, by sparsity."
    return Picture("dead_layers", "Dead layers", caption, (chart,))


def _in_order(panel: Panel, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of the styles of their series."""
    places = {name: place for place, name in enumerate(panel.look)}
    return rows.sort_values("series", key=lambda names: names.map(places), kind="stable")


_KERNEL = {
    "ntk_trace": "trace of the kernel",
    "ntk_effective_rank": "effective rank",
    "ntk_alignment": "alignment with the labels",
    "gates_changed": "gates unlike at the start",
}


def _training(panel: Panel) -> list[Picture]:
    """Loss and metric over the epochs, and what was measured of the kernel."""
    rows = pd.concat([panel.dense, panel.sparsest]) if not panel.pruned.empty else panel.dense
    runs = zip(rows["run"], rows["series"], strict=True)
    epochs = pd.concat([pd.DataFrame(panel.records[run].epochs).assign(series=name) for run, name in runs])
    metric = panel.metric.removeprefix("val_")
    part, name = "val" if f"val_{metric}" in epochs else "train", metric_label(metric).removeprefix("test ")
    right = f"{'validation' if part == 'val' else 'training'} {name} (%)"

    def drawn(column: str, label: str, factor: float = 1.0) -> list[alt.LayerChart]:
        if column not in epochs:
            return []
        means = factor * epochs.dropna(subset=["epoch", column]).groupby(["series", "epoch"])[column].mean()
        frame = means.rename("mean").reset_index()
        look = {name: panel.look[name] for name in panel.series(frame)}
        return [curves(frame, "epoch", x_title="epoch", y_title=label, look=look)]

    at = "" if panel.pruned.empty else f" at sparsity {panel.sparsest['sparsity'].iloc[0]:.6g}"
    over = "seeds and tasks" if panel.runs["zero_shot"].notna().any() else "seeds"
    caption = f"Mean over {over}{at}{', with the dense network' if at and not panel.dense.empty else ''}."
    charts = [*drawn("train_loss", "training loss"), *drawn(f"{part}_{metric}", right, 100.0)]
    kernel = [chart for column, label in _KERNEL.items() for chart in drawn(column, label)]
    pictures = [Picture("training", "Training", caption, tuple(charts), across=True)] if charts else []
    caption += " Of the same images in every run, BatchNorm calibrated on them."
    return [*pictures, *([Picture("kernel", "The kernel over training", caption, tuple(kernel))] if kernel else [])]


def _transfer(panel: Panel) -> Picture:
    """Means over tasks and seeds: zero-shot above, after fine-tuning below."""
    tasks = [len(panel.records[run].tasks) for run in panel.runs["run"]]
    several = f"{min(tasks)} to {max(tasks)}" if min(tasks) < max(tasks) else f"{tasks[0]}"
    several += " task" if max(tasks) == 1 else " tasks"
    caption = f"Mean {panel.label} over {several} and over seeds ({seeds_said(panel.runs)}). "
    if panel.runs.groupby(["series", "sparsity"])["seed"].nunique().max() > 1:
        caption += "Bands and bars are 95 % intervals over seeds by Student's t. "
    if not panel.dense.empty:
        caption += "Dashed: the dense network."
    return Picture("transfer", "Transfer to other tasks", caption.strip(), tuple(_part(panel, part) for part in _PARTS))


def _part(panel: Panel, column: str) -> alt.LayerChart:
    runs, dense = (panel.dense, panel.pruned) if panel.pruned.empty else (panel.pruned, panel.dense)
    summary = percent(summary_table(runs.assign(value=runs[column])))
    lines = 100 * dense.groupby("series")[column].mean().dropna()
    look = {name: panel.look[name] for name in panel.series(runs)}
    look |= {name: level(panel.look[name].colour, DASHED) for name in lines.index}
    low, high = 100 * panel.runs[column].min(), 100 * panel.runs[column].max()
    margin = max(0.3 * (high - low), 1.0)
    how: dict[str, Any] = {"levels": lines.rename("mean").reset_index() if len(lines) else None, "look": look}
    how |= {"frame": (max(0.0, low - margin), min(100.5, high + margin))}
    label = f"{panel.label} (%), {_PARTS[column]}"
    if summary["sparsity"].nunique() == 1:
        return dots(summary[SHOWN].sort_values("mean", ascending=False), x_title=label, **how)
    return curves(summary[["sparsity", *SHOWN]], "sparsity", x_title=SPARSER, y_title=label, **how)

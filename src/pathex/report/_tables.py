"""Runs as tables: one row a run, one row a setting, and the settings that all runs share."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pathex.report._records import RunRecord
from pathex.report._statistics import Estimate, estimate

__all__ = ["GROUP", "commands", "markdown", "nested", "runs_table", "shared_settings", "summary_table"]

GROUP = ["model", "data", "series", "method", "settings", "sparsity"]
"""The columns that make one row of the summary."""

_COLUMNS = frozenset({"model", "data", "method", "sparsity", "seed"})
_WITHOUT_EFFECT = frozenset({"out", "device", "memory", "strict"})
_OF_PLACE = frozenset({"out", "device"})
_OF_PRUNING = ("rounds", "allocation", "images_per_class", "method_options")
_OF_METHOD = ("rounds", "method_options")


def runs_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row a run.

    Args:
        records: Finished runs.

    Returns:
        A frame ordered by model, data, sparsity, series and seed. ``settings`` names what differs between runs beyond
        model, data, method, sparsity and seed; ``series`` is the method with these settings.
    """
    rows = [_row(record, _settings(record, records)) for record in records]
    frame = pd.DataFrame(rows)
    return frame.sort_values(["model", "data", "sparsity", "series", "seed", "run"]).reset_index(drop=True)


def _row(record: RunRecord, settings: str) -> dict[str, Any]:
    result = record.result
    kept, total = int(result["kept"]), int(result["total"])
    return {
        "run": record.folder.name,
        "model": str(record.config["model"]),
        "data": str(record.config["data"]),
        "series": f"{record.method} ({settings})" if settings else record.method,
        "method": record.method,
        "settings": settings,
        "sparsity": round(record.sparsity, 6),
        "seed": record.seed,
        "test_accuracy": float(result["test_accuracy"]),
        "kept": kept,
        "total": total,
        "density": kept / total,
        "dead_layers": int(result.get("dead_layers") or 0),
        "prune_seconds": float(result.get("prune_seconds") or 0.0),
        "train_seconds": float(result.get("train_seconds") or 0.0),
        "rounds": result.get("rounds") if record.pruned else None,
        "epochs": result.get("epochs", record.config.get("epochs")),
    }


def _settings(record: RunRecord, records: Sequence[RunRecord]) -> str:
    panel = [r for r in records if (r.config["model"], r.config["data"]) == _panel(record)]
    shown = []
    for name, value in _effective(record).items():
        peers = [peer for peer in panel if not name.startswith(_OF_PRUNING) or peer.pruned]
        if name.startswith(_OF_METHOD):
            peers = [peer for peer in peers if peer.method == record.method]
        differs = any(peer.config.get(name) != value for peer in peers)
        if differs and value is not None:
            shown.append(f"{name.removeprefix('method_options.')}={_text(value)}")
    return ", ".join(sorted(shown))


def _panel(record: RunRecord) -> tuple[Any, Any]:
    return record.config["model"], record.config["data"]


def _effective(record: RunRecord) -> dict[str, Any]:
    named = {name: value for name, value in record.config.items() if name not in _COLUMNS | _WITHOUT_EFFECT}
    return named if record.pruned else {n: v for n, v in named.items() if not n.startswith(_OF_PRUNING)}


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each model, data set, method, setting and sparsity.

    Args:
        runs: The table of runs.

    Returns:
        Means over seeds; ``ci95_low`` and ``ci95_high`` bound the mean accuracy by Student's t, within 0 and 1 (missing
        for one seed). Ordered by model, data, sparsity and falling accuracy.
    """
    rows = []
    for key, group in runs.groupby(GROUP, sort=False):
        accuracy = estimate(group["test_accuracy"].tolist())
        means = group[["density", "kept", "total", "dead_layers", "prune_seconds", "train_seconds"]].mean()
        rows.append(
            dict(zip(GROUP, key, strict=True))
            | {"n": accuracy.n, "mean_accuracy": accuracy.mean, **_bounds(accuracy)}
            | means.to_dict()
        )
    frame = pd.DataFrame(rows).astype({"ci95_low": float, "ci95_high": float})
    order = ["model", "data", "sparsity", "mean_accuracy", "series"]
    return frame.sort_values(order, ascending=[True, True, True, False, True]).reset_index(drop=True)


def _bounds(accuracy: Estimate) -> dict[str, float | None]:
    if accuracy.low is None or accuracy.high is None:
        return {"ci95_low": None, "ci95_high": None}
    return {"ci95_low": max(accuracy.low, 0.0), "ci95_high": min(accuracy.high, 1.0)}


def markdown(summary: pd.DataFrame) -> str:
    """The summary as a table in Markdown.

    Args:
        summary: The summary table.

    Returns:
        The text, with a final newline.
    """
    head = ["model", "data", "method", "sparsity", "n", "test accuracy", "95 % interval", "kept / total", "dead layers"]
    head.append("prune seconds")
    lines = [_line(head), _line(["---"] * 3 + ["---:"] * (len(head) - 3))]
    for row in summary.to_dict("records"):
        low, high = row["ci95_low"], row["ci95_high"]
        lines.append(
            _line(
                [
                    row["model"],
                    row["data"],
                    row["series"],
                    f"{row['sparsity']:.6g}",
                    str(row["n"]),
                    f"{100 * row['mean_accuracy']:.2f} %",
                    "—" if pd.isna(low) else f"{100 * low:.2f} to {100 * high:.2f}",
                    f"{row['kept']:,.0f} / {row['total']:,.0f}",
                    f"{row['dead_layers']:.3g}",
                    f"{row['prune_seconds']:.1f}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def shared_settings(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The settings with one value in all runs, where they are run being left out.

    Args:
        records: Finished runs.

    Returns:
        The settings, options with dotted names.
    """
    first, rest = records[0].config, records[1:]
    return {
        name: value
        for name, value in first.items()
        if name not in _OF_PLACE and all(name in r.config and r.config[name] == value for r in rest)
    }


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a configuration file has them.

    Args:
        settings: Settings with dotted names of options.

    Returns:
        The same with options in mappings.
    """
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        group, dot, option = name.partition(".")
        if dot:
            tree.setdefault(group, {})[option] = value
        else:
            tree[name] = value
    return tree


def commands(records: Sequence[RunRecord], shared: Mapping[str, Any], settings_file: str) -> list[str]:
    """The command line of each run.

    Args:
        records: Finished runs.
        shared: The settings that ``settings_file`` holds.
        settings_file: Name of the file of shared settings.

    Returns:
        One command a run, in the order of the runs.
    """
    import shlex

    lines = []
    for record in records:
        words = ["pathex", "run", "--config", settings_file]
        for name, value in record.config.items():
            if name not in shared and name not in _OF_PLACE:
                words += [f"--{_hyphened(name)}", _text(value)]
        lines.append(shlex.join(words))
    return lines


def _hyphened(name: str) -> str:
    head, dot, rest = name.partition(".")
    return head.replace("_", "-") + dot + rest


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, default=str)

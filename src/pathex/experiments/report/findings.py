"""What the numbers allow to be said, in sentences."""

from collections.abc import Sequence

import pandas as pd

from pathex.experiments.report.settings import short
from pathex.experiments.report.tables import by_seed, difference, metric_label

_NOT_PRUNED = {"dense": "dense network", "small-dense": "small dense network"}
_CLAIM = "points above"


def what_was_run(runs: pd.DataFrame) -> str:
    """The runs in one sentence."""
    beside = runs["method"].isin(_NOT_PRUNED)
    pruned = runs[~beside]
    methods = pruned["method"].unique().tolist()
    others = [f"the {_NOT_PRUNED[name]}" for name in _NOT_PRUNED if name in set(runs["method"])]
    what = f"training of {_in_words(others)}" if others != ["the dense network"] and others else "dense training"
    if methods:
        sparsities = [f"{value:.6g}" for value in sorted(pruned["sparsity"].unique())]
        what = f"{_count(len(methods), 'pruning method')} ({_in_words(sorted(methods))})"
        what += f" at sparsity {_in_words(sparsities)}"
        what += f" beside {_in_words(others)}" if others else ""
    models, data = (_in_words(sorted({short(name) for name in runs[column]})) for column in ("model", "data"))
    where = f"{models} on {data}"
    seeds, count = _count(runs["seed"].nunique(), "seed"), _count(len(runs), "run")
    return f"{what[0].upper()}{what[1:]}: {where}, {seeds}, {count} in all."


def headline(runs: pd.DataFrame) -> str:
    """The findings of one experiment at its highest sparsity, and at every other one where methods are told apart."""
    pruned = runs[runs["method"] != "dense"]
    metric = str(runs["metric"].iloc[0])
    if pruned.empty:
        return f"Only dense runs: {metric_label(metric)} {_percent(runs['value'].mean())} on average."
    first, *others = (_findings(rows) for _, rows in sorted(pruned.groupby("sparsity"), reverse=True))
    return " ".join([*first, *(finding for findings in others for finding in findings if _CLAIM in finding)])


def _findings(rows: pd.DataFrame) -> list[str]:
    """A finding at one sparsity for each group of runs whose settings beside those of their methods are equal."""
    groups = [group for _, group in rows.groupby("protocol")]
    compared = [group for group in groups if group["series"].nunique() > 1]
    return [_finding(group) for group in compared or groups]


def _finding(rows: pd.DataFrame) -> str:
    metric = str(rows["metric"].iloc[0])
    values = {str(series): by_seed(group) for series, group in rows.groupby("series")}
    best, *others = sorted(values, key=lambda name: -values[name].mean())
    where = "At" if metric == "accuracy" else f"In {metric_label(metric)} at"
    where += f" sparsity {rows['sparsity'].iloc[0]:.6g}"
    if not others:
        return f"{where}, {best} reaches {_percent(values[best].mean())}; nothing to compare with."
    baselines = rows.loc[rows["method"] == "random", "series"].unique()
    if len(baselines) != 1 or best == baselines[0]:
        finding = f"{where}, no method has a higher mean than random pruning. " if best in baselines else ""
        return finding + _against(values, best, others[0], where)
    finding = _against(values, best, str(baselines[0]), where, of=len(values))
    if "no claim" not in finding and not difference(values[best], values[others[0]]).has_sign:
        finding += f" Between {best} and {others[0]}, no claim."
    return finding


def different_totals(runs: pd.DataFrame) -> str:
    """A sentence where methods count different numbers of weights, so that one sparsity is not one size; else empty."""
    totals = runs[~runs["method"].isin(_NOT_PRUNED)].groupby("total")["series"].unique()
    if len(totals) < 2:
        return ""
    counted = [f"{_in_words(sorted(names))} of {total:,}" for total, names in totals.items()]
    return (
        f" Sparsity is a share of different numbers: {'; '.join(counted)}. Methods that read paths leave out "
        "the weights that lie on none (off_path in pruning.json of a run); ignore= takes them from the others too."
    )


def _against(values: "dict[str, pd.Series[float]]", best: str, other: str, where: str, of: int = 2) -> str:
    first, second = (_percent(values[name].mean()) for name in (best, other))
    gap = difference(values[best], values[other])
    if gap.n < 2:
        seeds = _count(gap.n, "seed") if gap.n else "no seed"
        return f"{where}: {best} {first}, {other} {second}, with {seeds} in common: no claim. Repeat with more seeds."
    interval = f"95 % interval {100 * gap.low:.1f} to {100 * gap.high:.1f}, {gap.n} seeds in common"
    if not gap.has_sign:
        return f"{where}: {best} {first}, {other} {second}, which may be chance ({interval}): no claim."
    rank = f", the highest mean of {of} methods," if of > 2 else ""
    return f"{where}, {best}{rank} is {100 * gap.mean:.1f} {_CLAIM} {other} ({interval}): {first} against {second}."


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _in_words(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]

"""Are 100 rounds needed? What fewer rounds and fewer images keep, cost, and lead to after training.

    python -m benchmarks.fewer_rounds --models resnet20:8 --epochs 12 --jobs 2
    python -m benchmarks.fewer_rounds --data npz:cifar10.npz --epochs 0 --cases rounds=20 schedule=adaptive:0.02

A case is what differs from the reference, 100 rounds with 10 images of each class: settings of ``pathex run``, as
``rounds=20,images_per_class=5``. ``pruning_seed=1000000`` (another draw of the pruning set) is the noise floor: it
changes nothing that a user would call a setting. Runs of one seed share initial weights, pruning set and the order of
the training images, so that accuracies are compared in pairs. Runs are those of a sweep below ``--runs``, so that a
killed study goes on. For seconds that can be quoted, use one job on a quiet machine.

| column | meaning |
|---|---|
| `model`, `sparsity`, `case` | the runs, over all seeds |
| `rounds`, `seconds`, `faster` | rounds made, seconds of the prune, times as fast as the reference |
| `same` | share of the kept weights that the reference of the same seed keeps too |
| `disconnected`, `dead_layers` | kept weights on no path; layers without a weight on a path |
| `accuracy`, `difference`, `standard_error`, `seeds` | on the test images; difference to the reference, in pairs |
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.measure import Row, Table, arguments, command, save, study
from pathex import Mask
from pathex.experiments.runs import RunConfig, finished_result, run_name
from pathex.experiments.sweep import SweepConfig
from pathex.figures import DASHED, INK, Style, dots, level

__all__ = ["REFERENCE", "configs", "main", "summary"]

REFERENCE = "rounds=100"
_CASES = (
    "pruning_seed=1000000",
    *(f"rounds={rounds}" for rounds in (10, 20, 50)),
    *(f"schedule=adaptive:{tolerance}" for tolerance in (0.02, 0.05, 0.1)),
    *(f"images_per_class={images}" for images in (1, 5)),
)


def configs(given: dict[str, Any]) -> SweepConfig:
    """Every run; entries are in the order of models, sparsities, seeds and cases."""
    listed = []
    for model in given["models"]:
        name, _, width = model.partition(":")
        own = {"model": name, "model_options": {"width": int(width)} if width else {}}
        for sparsity in given["sparsity"]:
            for seed in given["seeds"]:
                for case in (REFERENCE, *given["cases"]):
                    pairs = (pair.partition("=") for pair in case.split(","))
                    varied = {setting: yaml.safe_load(value) for setting, _, value in pairs}
                    listed.append({**own, "sparsity": sparsity, "seed": seed, "rounds": 100, **varied})
    shared = {name: given[name] for name in ("data", "method", "epochs", "batch_size", "lr")}
    shared["device"] = str(given["device"])
    return SweepConfig(
        settings=shared,
        list=tuple(listed),
        concurrent=given["jobs"],
        threads=given["threads"],
        out=str(given["runs"]),
    )


def row_of(config: RunConfig, case: str, reference: RunConfig) -> Row:
    """The row of one run."""
    folder, beside = (Path(each.out) / run_name(each) for each in (config, reference))
    result = finished_result(folder)
    assert result is not None
    mask, other = (Mask.load(each / "mask.safetensors") for each in (folder, beside))
    measured = {"rounds": result["rounds"], "seconds": result["prune_seconds"], "same": (mask & other).kept / mask.kept}
    measured |= {name: result[name] for name in ("disconnected", "dead_layers")}
    about = {"model": _label(config), "sparsity": config.sparsity, "case": case, "seed": config.seed}
    return {**about, **measured, "accuracy": result["test_accuracy"]}


def _label(config: RunConfig) -> str:
    return ":".join(map(str, [config.model, *config.model_options.values()]))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with differences to the reference of the same seed; one pair has no standard error."""
    keys = ["model", "sparsity", "case"]
    reference = rows.loc[rows["case"] == REFERENCE, [*keys[:2], "seed", "seconds", "accuracy"]]
    pairs = rows.merge(reference, on=[*keys[:2], "seed"], suffixes=("", "_reference"))
    pairs["faster"] = pairs["seconds_reference"] / pairs["seconds"]
    pairs["difference"] = pairs["accuracy"] - pairs["accuracy_reference"]
    groups = pairs.groupby(keys, sort=False)
    columns = ["rounds", "seconds", "faster", "same", "disconnected", "dead_layers", "accuracy", "difference"]
    table = groups[columns].mean()
    table["standard_error"], table["seeds"] = groups["difference"].sem(), groups["difference"].count()
    return table.reset_index().round(5)


def draw(table: pd.DataFrame, path: Path) -> None:
    """How much faster, how many of the same weights, and differences in accuracy."""
    panels = {
        "faster": ("times as fast as 100 rounds", 1.0),
        "same": ("share of the same weights", 1.0),
        "difference": ("difference in accuracy, standard error", 0.0),
    }
    charts = []
    for column, (title, equal) in panels.items():
        for (model, sparsity), rows in table[table["case"] != REFERENCE].groupby(["model", "sparsity"], sort=False):
            errors = rows["standard_error"] if column == "difference" else float("nan")
            means = pd.DataFrame({"series": rows["case"], "mean": rows[column]})
            means = means.assign(low=means["mean"] - errors, high=means["mean"] + errors)
            look = {name: Style("#0072B2") for name in means["series"]} | {"100 rounds": level(INK, DASHED)}
            line = pd.DataFrame([{"series": "100 rounds", "mean": equal}])
            x_title = f"{title}: {model}, sparsity {sparsity:g}"
            charts.append(dots(means, x_title=x_title, look=look, levels=line, number=".3~g"))
    save(path, *charts)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the runs, write rows and means and draw them; 1 if a run failed."""
    parser = arguments(__doc__, "fewer_rounds")
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet20:8"], metavar="NAME[:WIDTH]")
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--method", default="px")
    parser.add_argument("--cases", nargs="+", default=list(_CASES), metavar="SETTING=VALUE,...")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.982])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "fewer-rounds", help="where the run folders go")
    parser.set_defaults(threads=1)
    given = vars(parser.parse_args(argv))
    runs = study(configs(given))
    if not runs:
        return 1
    cases = (REFERENCE, *given["cases"])
    settings = {name: value for name, value in given.items() if name not in {"out", "runs", "data"}}
    table = Table(given["out"], settings, given["device"], given["threads"])
    for number, run in enumerate(runs):
        place = number % len(cases)
        table.add(row_of(run, cases[place], runs[number - place]))
    means = summary(table.frame())
    path = given["out"].with_name(f"{given['out'].stem}-summary.csv")
    table.write(means, path)
    draw(means, given["out"])
    print(means.to_string(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))

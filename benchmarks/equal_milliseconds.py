"""Accuracy at equal milliseconds: tickets with kept weights only, narrower dense networks, and dense int8.

    python -m benchmarks.equal_milliseconds --jobs 2

Tickets of `px` at several sparsities run in `pathex.compile`; dense networks of several widths, trained alike, in the
fastest of PyTorch (both layouts), ONNX Runtime and OpenVINO; the widest also in int8 in OpenVINO, quantised after
training by NNCF with 300 training images (``pip install nncf``; left out without). Runs are those of a sweep below
``--runs``, so that a killed study goes on. Milliseconds are medians of seven turns on one core, all networks in turns.

| column | meaning |
|---|---|
| `network` | ``px SPARSITY``, ``dense WIDTH`` or ``int8 WIDTH`` |
| `accuracy`, `standard_error` | on the test images, over the seeds |
| `milliseconds_1`, `milliseconds_32` | of a batch of one image and of 32 |
| `engine` | that of a batch of one image |
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import pathex
from benchmarks.measure import Table, arguments, command, now, quartiles, save, study
from pathex.errors import PathexError, PathexWarning
from pathex.experiments.measure import DENSE, ENGINES
from pathex.experiments.measure.engines import Engine, Subject
from pathex.experiments.runs import RunConfig, build_task, finished_result, run_name
from pathex.experiments.sweep import SweepConfig
from pathex.figures import GREY, Style, curves
from pathex.tasks import Task
from pathex.train import fabric

__all__ = ["main", "summary"]

_TURN, _TURNS = 0.1, 7


def _calibration(config: RunConfig, task: Task) -> Tensor:
    """Training images."""
    feed = task.feed("train", torch.device("cpu"), 300, augment="none")
    return next(iter(feed.in_order()))[0]


class _Int8(nn.Module):
    """A network that OpenVINO computes in int8."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        import nncf
        import openvino

        core = openvino.Core()
        read = core.read_model(Subject(model, images[:1]).onnx)
        dataset = nncf.Dataset([image.numpy()[None] for image in images])
        self._quantised = nncf.quantize(read, dataset, subset_size=len(images))
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        self._request = core.compile_model(self._quantised, "CPU", settings).create_infer_request()

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._request.infer([x.contiguous().numpy()])[0].copy())


@torch.inference_mode()
def _turn(engine: Engine, images: Tensor) -> float:
    """Milliseconds of a call, over a turn of calls."""
    began, calls = now(images.device), 0
    while now(images.device) < began + _TURN:
        engine(images)
        calls += 1
    return 1000 * (now(images.device) - began) / calls


def _milliseconds(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, tuple[float, str]]:
    """Of every network in its fastest engine, in turns."""
    engines: dict[str, tuple[Engine, str]] = {}
    for name, model in networks.items():
        names = ("sparse",) if name.startswith("px") else DENSE
        subject = Subject(model, images[:1])
        ready: dict[str, Engine] = {}
        for engine in names:
            with suppress(PathexError):  # of what is not installed
                ready[engine] = model if isinstance(model, _Int8) else ENGINES[engine](subject, images, 1)
        seconds = {engine: min(_turn(call, images) for _ in range(2)) for engine, call in ready.items()}
        best = min(seconds, key=seconds.__getitem__)
        engines[name] = ready[best], "openvino" if isinstance(model, _Int8) else best
    turns = [{name: _turn(engine, images) for name, (engine, _) in engines.items()} for _ in range(_TURNS)]
    return {name: (quartiles([turn[name] for turn in turns])[1], engine) for name, (_, engine) in engines.items()}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds."""
    groups = rows.groupby("network", sort=False)["accuracy"]
    return pd.DataFrame({"accuracy": groups.mean(), "standard_error": groups.sem(), "seeds": groups.count()})


def _draw(table: pd.DataFrame, path: Path) -> None:
    look = {"px": Style("#0072B2"), "dense": Style(GREY, "square"), "int8": Style("#D55E00", "diamond")}
    percent, errors = 100 * table["accuracy"].astype(float), 100 * table["standard_error"].astype(float)
    means = table[["network"]].assign(series=table["network"].str.split().str[0], mean=percent)
    means = means.assign(low=percent - errors, high=percent + errors)
    charts = []
    for batch in (1, 32):
        rows = means.assign(milliseconds=table[f"milliseconds_{batch}"].astype(float)).sort_values("milliseconds")
        x_title = f"milliseconds of a batch of {batch}, one core"
        how = {"x_title": x_title, "y_title": "test accuracy (%)", "log": "x"}
        charts.append(curves(rows, "milliseconds", look=look, **how))
    save(path, *charts)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the runs, measure, write rows and picture; 1 if a run failed."""
    parser = arguments(__doc__, "equal_milliseconds")
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 12, 8, 6, 4])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9, 0.95, 0.982])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "equal-milliseconds", help="where the runs go")
    parser.set_defaults(threads=1)
    given = vars(parser.parse_args(argv))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", PathexWarning)
    shared = {"model": "resnet20", "data": given["data"], "epochs": given["epochs"], "batch_size": 64, "lr": 0.1}
    cases: list[tuple[str, dict[str, Any]]] = []
    for seed in given["seeds"]:
        for sparsity in given["sparsities"]:
            options = {"width": given["widths"][0]}
            cases.append((f"px {sparsity}", {"sparsity": sparsity, "seed": seed, "model_options": options}))
        for width in given["widths"]:
            dense = {"method": "dense", "seed": seed, "model_options": {"width": width}}
            cases.append((f"dense {width}", dense))
    how: dict[str, Any] = {"concurrent": given["jobs"], "threads": 1, "out": str(given["runs"])}
    runs = study(SweepConfig(settings=shared, list=tuple(entry for _, entry in cases), **how))
    if not runs:
        return 1
    table = Table(given["out"], {name: value for name, value in given.items() if name not in {"out", "runs"}})
    networks: dict[str, nn.Module] = {}
    for (name, _), run in zip(cases, runs, strict=True):
        folder = Path(run.out) / run_name(run)
        found, model = finished_result(folder), pathex.load_run(folder)
        assert found is not None
        networks.setdefault(name, model)
        table.add({"network": name, "seed": run.seed, "accuracy": found["test_accuracy"]})
        if name == f"dense {given['widths'][0]}":
            task = build_task(run)
            try:
                quantised = _Int8(model, _calibration(run, task))
            except ImportError:
                continue
            quick = task.test(quantised, fabric=fabric("cpu"), batch_size=64)
            networks.setdefault(f"int8 {given['widths'][0]}", quantised)
            table.add({"network": f"int8 {given['widths'][0]}", "seed": run.seed, "accuracy": quick["test_accuracy"]})
    shape = build_task(runs[0]).example.shape[1:]
    means = summary(table.frame()).reset_index()
    for batch in (1, 32):
        images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
        found = _milliseconds(networks, images)
        means[f"milliseconds_{batch}"] = [round(found[name][0], 4) for name in means["network"]]
        if batch == 1:
            means["engine"] = [found[name][1] for name in means["network"]]
    table.write(means.round(5), given["out"].with_name(f"{given['out'].stem}-summary.csv"))
    _draw(means, given["out"])
    print(means.to_string(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))

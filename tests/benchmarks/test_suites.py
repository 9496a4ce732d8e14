import importlib
import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from benchmarks import (
    file_sizes,
    float32_trajectories,
    kept_kernels,
    latency,
    latency_beside_deepsparse,
    networks,
    ntk,
    rounds,
    scale,
    training,
)
from benchmarks.measure import ERROR, CaseFailed, Process, Table, command, peak_memory, problem, quartiles, tensor_peak
from benchmarks.plain import plain_px, plain_scores, plainest_px
from pathex.errors import InvalidInput
from refusals import refused

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore")  # of the profiler, on machines without a GPU
def test_peak_of_tensors_is_of_what_lives_at_a_time():
    def work():
        for _ in range(3):
            a = torch.empty(1000, dtype=torch.float32)
            b = torch.empty(500, dtype=torch.float32)
            del a, b

    assert 6000 <= tensor_peak(CPU, work) < 7000


def answer(connection, number):
    connection.send((number, torch.get_num_threads()))
    if connection.recv() == "fail":
        row = {}
        with peak_memory(row):
            torch.ones(50 * 2**20, dtype=torch.uint8)
        connection.send(row.get("resident_mib"))
        raise InvalidInput("no\nway")
    raise SystemExit(3)


def test_processes_answer_and_tell_their_memory_and_why_they_ended():
    failing, stopping = cases = [Process(answer, 7, threads=1) for _ in range(2)]
    try:
        assert [case.answer() for case in cases] == [(7, 1)] * 2
        for case, word in zip(cases, ("fail", "stop"), strict=True):
            case.tell(word)
        memory = failing.answer()  # MiB above the start, where the system tells
        assert 45 <= memory <= 80 if Path("/proc/self/clear_refs").exists() else memory is None
        for case, message in ((failing, "InvalidInput: no way"), (stopping, "ended with code 3")):
            with pytest.raises(CaseFailed, match=message):
                case.answer()
    finally:
        for case in cases:
            case.end()


def test_quartiles():
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_rows_are_written_as_they_come_beside_their_environment(tmp_path):
    table = Table(tmp_path / "rows" / "tried.csv", {"count": 7, "folder": tmp_path.name}, threads=2)
    for row, text in (({"x": 1}, "x\n1\n"), ({"x": 2, "y": 3}, "x,y\n1,\n2,3\n")):
        table.add(row)
        assert (tmp_path / "rows" / "tried.csv").read_text() == text
    about = json.loads((tmp_path / "rows" / "tried.json").read_text())
    assert about["settings"]["count"] == 7 and about["environment"]["threads"] == 2 and "torch" in about["environment"]
    assert pd.api.types.is_integer_dtype(table.frame()["y"])


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet20", 0, 32),
        ("resnet18_tiny", 0, 64),
        ("torchvision:resnet18", 0, 224),
        ("timm:vit_tiny_patch16_224", 32, 32),
    ],
)
def test_networks_and_images_fit_each_other_and_follow_from_the_seed(name, size, expected):
    state = torch.get_rng_state()
    model, x, y = problem(name, 1, 3, 0, CPU, size)
    again, _, _ = problem(name, 1, 3, 0, CPU, size)
    assert x.shape == (1, 3, expected, expected) and y.tolist() == [0]
    assert model(x).shape == (1, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_rounds_of_labels_that_name_a_method_and_its_options_and_a_case_that_fails(tmp_path, capsys):
    labels = ["magnitude:rounds=2", "magnitude:speed=9"]
    words = ["--methods", *labels, "--rounds", "1", "--images", "2", "--threads", "1"]
    assert rounds.main([*words, "--out", str(tmp_path / "r.csv")]) == 1
    frame = pd.read_csv(tmp_path / "r.csv").set_index("method")
    assert frame.index.tolist() == ["plain", *labels]
    assert frame["rounds"].tolist()[:2] == [1, 2] and frame["kept"].tolist()[:2] == [4876] * 2  # of 270,896
    assert "unknown option of method" in frame.loc[labels[1], ERROR]
    well = frame[frame[ERROR].isna()]
    assert (well["seconds"] >= well["round_seconds"]).all() and (well["tensor_mib"] > 1).all()
    assert well[["speed_up", "prune_speed_up", "memory_ratio"]].notna().all(axis=None)
    assert well.loc["plain", "speed_up"] == 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".json", ".png", ".svg"}
    plain = {"round_seconds": 4.0, "seconds": 400.0, "tensor_mib": 100.0}
    px = {"round_seconds": 2.0, "seconds": 50.0, "tensor_mib": 25.0}
    assert rounds.with_ratios(px, plain) == {**px, "speed_up": 2.0, "prune_speed_up": 8.0, "memory_ratio": 0.25}
    assert rounds.with_ratios(px, {ERROR: "broken"}) == px
    assert rounds.options_of("px:redraw=true,rounds=25") == ("px", {"redraw": True, "rounds": 25})
    assert rounds.options_of("plain") == ("plain", {})
    assert command(lambda: rounds.main(["--methods", "pxx", "--out", str(tmp_path / "none" / "r.csv")])) == 2
    assert capsys.readouterr().err.startswith("error: unknown method 'pxx'") and not (tmp_path / "none").exists()


class PowerLaw:
    """A machine on which seconds grow with the 1.5th power of images and the square of rounds, memory with neither."""

    def __init__(self, _, case, __, *, threads):
        self.case = case

    def answer(self):
        if self.case.model == "resnet44":
            raise CaseFailed("too large")
        depth = int(self.case.model[-2:])
        row = {"parameters": depth, "multiply_adds": depth**2, "tensor_mib": 7.0 * depth}
        row |= {"rounds": self.case.rounds or 1, "seconds": float(self.case.rounds) ** 2}
        return row | {"round_seconds": float(self.case.images) ** 1.5 * depth}

    def end(self):
        pass


def test_exponents_are_fitted_by_series_of_networks_that_differ_in_size(monkeypatch, tmp_path):
    monkeypatch.setattr(scale, "Process", PowerLaw)
    words = ["--models", "resnet20", "resnet32", "resnet44", "--image-counts", "1", "2", "4"]
    assert scale.main([*words, "--round-counts", "2", "4", "--out", str(tmp_path / "s.csv")]) == 1
    frame = pd.read_csv(tmp_path / "s.csv")
    fits = frame[frame["kind"] == "fit"].set_index("against")
    assert fits.index.tolist() == ["parameters", "images", "rounds"]
    assert fits["time_exponent"].tolist() == [1.0, 1.5, 2.0] and fits["memory_exponent"].tolist()[:2] == [1.0, 0.0]
    assert fits.loc["parameters", "work_exponent"] == 0.5
    assert frame[ERROR].dropna().tolist() == ["too large"]
    row = {"against": "images", "series": "a", "images": 2, "round_seconds": 1.0, "tensor_mib": 1.0}
    assert list(scale.fit([row, row])) == [] == list(scale.fit([]))
    models = ["torchvision:resnet18", "resnet20", "timm:vit_tiny_patch16_224", "resnet110"]
    shared = {"models": models, "model": "resnet20", "images": 5, "image_size": 64}
    cases = scale.cases(Namespace(**shared, image_counts=[25], round_counts=[10]))
    assert [(case.series, case.model, case.image_size) for case in cases[:4]] == [
        ("resnet", "resnet20", 0),
        ("resnet", "resnet110", 0),
        ("timm:vit", "timm:vit_tiny_patch16_224", 64),
        ("torchvision:resnet", "torchvision:resnet18", 64),
    ]
    assert [(case.against, case.images, case.rounds) for case in cases[4:]] == [("images", 25, 0), ("rounds", 5, 10)]


@pytest.mark.slow
def test_a_case_of_scale_in_a_fresh_process(tmp_path):
    words = ["--models", "--image-counts", "--round-counts", "2", "--images", "1", "--method", "magnitude"]
    assert scale.main([*words, "--memory", "1KiB", "--threads", "1", "--out", str(tmp_path / "s.csv")]) == 0
    (row,) = pd.read_csv(tmp_path / "s.csv").to_dict("records")
    assert row["parameters"] == 272_474 and row["weights_mib"] == round(4 * 270_896 / 2**20, 1)
    assert not row["within_budget"]  # the weights alone are more than a KiB
    assert 0 < row["round_seconds"] <= row["seconds"]


def test_training_and_the_cost_of_a_mask(tmp_path):
    words = ["--images", "8", "--batch-size", "4", "--epochs", "1", "--repeats", "1", "--pairs", "1", "--threads", "1"]
    assert training.main([*words, "--out", str(tmp_path / "t.csv")]) == 0
    frame = pd.read_csv(tmp_path / "t.csv").set_index("case")
    assert frame.index.tolist() == ["plain", "dense", "masked"]
    assert frame["ratio"]["plain"] == 1 and (frame["epoch_low"] <= frame["epoch_high"]).all()
    assert frame["mask_share"].notna().tolist() == [False, False, True]
    assert (tmp_path / "t.png").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize(
    ("module", "words", "expected"),
    [
        ("float32_trajectories", ["--cases", "plain20"], {"same", "finite", "free_jaccard"}),
        (
            "kernel_agreement",
            ["--networks", "resnet20 gelu", "--seeds", "0", "--images-per-class", "1"],
            {"correlation"},
        ),
    ],
)
def test_other_benchmarks_write_shares(module, words, expected, tmp_path, monkeypatch):
    small = float32_trajectories.Case(lambda: float32_trajectories.plain(4, 4), 8, 2, 2, 0.5)
    monkeypatch.setitem(float32_trajectories.CASES, "plain20", small)  # type: ignore[index]
    words += ["--threads", "1", "--out", str(tmp_path / "rows.csv")]
    assert importlib.import_module(f"benchmarks.{module}").main(words) == 0
    frame = pd.read_csv(tmp_path / "rows.csv")
    assert expected <= {*frame} and frame[[*expected]].astype(float).stack().between(-1, 1).all()


def test_kernels_cost_what_was_told(tmp_path):
    words = ["--networks", "resnet20", "--images", "2", "--threads", "1", "--out", str(tmp_path / "rows.csv")]
    assert ntk.main(words) == 0
    rows = pd.read_csv(tmp_path / "rows.csv").set_index(["density", "work"])
    assert len(rows) == 8 and (rows["seconds"] >= 0).all()
    told = rows.loc[[(density, work) for density in (1.0, 0.018) for work in ("kernel", "trace")]]
    assert (told["predicted_seconds"] > 0).all() and (told["predicted_mib"] > 0).all()
    assert rows.loc[(0.018, "trace"), "value"] < rows.loc[(1.0, "trace"), "value"]


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_what_tickets_keep_of_the_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_kernels, "POINTS", 2)
    monkeypatch.setattr(kept_kernels, "STEP", 1)
    words = ["--methods", "magnitude", "synflow", "--images", "30", "--threads", "1", "--out", str(tmp_path / "k.csv")]
    assert kept_kernels.main(words) == 0
    rows = pd.read_csv(tmp_path / "k.csv").set_index("method")
    assert rows.loc["dense", "trace"] == 1 and rows.loc["dense", "log_determinant"] == 0
    for method in ("magnitude", "synflow"):
        assert rows.loc[method, "sparsity"].tolist() == [0.866, 0.982]
        assert (rows.loc[method, "trace"] < 1).all() and (rows.loc[method, "accuracy"].between(0, 100)).all()
    spectra = pd.read_csv(tmp_path / "k-spectra.csv")
    assert all(each["value"].is_monotonic_decreasing for _, each in spectra.groupby("method"))
    assert (tmp_path / "k.svg").stat().st_size > 1000
    before = (tmp_path / "k.csv").read_text()
    assert kept_kernels.main(words) == 0 and (tmp_path / "k.csv").read_text() == before  # nothing is left to do


def test_numbers_that_go_with_trained_accuracy_over_methods():
    methods = list("abcdefgh")
    rows = pd.DataFrame({"method": methods * 2, "seed": 0, "sparsity": [0.5] * 8 + [0.982] * 8})
    rows["trace"], rows["condition"] = [*range(8), *range(8)], [1.0] * 8 + [8.0, math.inf, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    runs = pd.DataFrame({"series": methods, "method": methods, "sparsity": 0.982, "seed": 0, "multiply_adds": 1.0})
    runs["val_accuracy"] = [0.1, 0.2, 0.4, 0.3, 0.5, 0.6, 0.7, 0.8]
    others = [runs.assign(series="a (narrow=3)", method="a", val_accuracy=9.0), runs.assign(seed=1, val_accuracy=0.0)]
    runs = pd.concat([runs, *others])
    published = pd.DataFrame({"method": list("abcd") * 2, "data": "cifar10", "model": "resnet20"})
    published["sparsity"], published["value"] = [0.5] * 4 + [0.982] * 4, [4, 3, 2, 1, 1, 2, 3, 4]
    found = kept_kernels.predictors(rows, runs, published).set_index("number")
    expected = {"trace": 1 - 6 * 2 / (8 * 63), "published": 0.8, "condition": -0.952}
    assert {name: found.loc[name, "spearman"] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert found["methods"].to_dict() == {"trace": 8, "condition": 8, "published": 4, "multiply_adds": 8}
    assert -0.2 < found.loc["trace", "low"] < 0.97 <= found.loc["trace", "high"] <= 1


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_sizes_of_files(tmp_path):
    words = ["--models", "resnet20", "--methods", "magnitude", "--sparsity", "0.982", "--rounds", "1", "--threads", "1"]
    assert file_sizes.main([*words, "--out", str(tmp_path / "rows.csv")]) == 0
    found = pd.read_csv(tmp_path / "rows.csv").set_index("form")["bytes"]
    assert found["entropy"] < found["ticket"] < 1.3 * found["entropy"]
    assert found["ticket"] < found["sparse"] < found["dense"]
    assert found["dense"] > 20 * found["sparse"]
    half = pathex.Mask({"a": torch.arange(80) < 40, "b": torch.ones(10, dtype=torch.bool)})
    assert file_sizes.entropy(half) == 10


@pytest.mark.filterwarnings("ignore")  # of exporters
def test_latency(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "CASES", ((0.9, "weights"),))
    words = ["--models", "resnet20", "--batches", "1", "--rounds", "1", "--engines", "torch", "sparse"]
    assert latency.main([*words, "--out", str(tmp_path / "rows.csv"), "--tickets", str(tmp_path / "masks")]) == 0
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("engine")
    assert rows["times"]["torch"] == 1
    assert 0 < rows["multiply_adds"]["sparse"] < 1 and rows["difference"]["sparse"] < 1e-4
    assert len(list((tmp_path / "masks").iterdir())) == 1


def test_turns_beside_an_engine_of_another_environment(tmp_path, monkeypatch):
    served = tmp_path / "deepsparse.py"  # what the other environment has under this name
    served.write_text("class compile_model:\n def __init__(s, p, **k): pass\n def run(s, x): return x\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    row = latency_beside_deepsparse._turns(sys.executable, served, 2, 8, lambda: None, 2)
    assert 0 < row["milliseconds"] < 1 and 0 < row["deepsparse"] < 1
    served.write_text("raise ImportError")
    assert "error" in latency_beside_deepsparse._turns(sys.executable, served, 2, 8, lambda: None, 2)


def test_another_activation():
    model = networks.resnet20(4, 1, "silu", width=2)
    names = [getattr(node.target, "__name__", "") for node in model.graph.nodes]
    assert names.count("silu") == 19 and "relu" not in names
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


# The names that the released code takes for weights although they belong to normalisation layers.
SQUARED = ["*.shortcut.1"]


@pytest.fixture(params=["functions", "modules"])
def case(request):
    """A network whose activations are functions or modules, images, and options of the scorer."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(108, 4))
    if request.param == "functions":
        model = pathex.models.CifarResNet(8, num_classes=4, width=3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    options = {"squared_norms": SQUARED} if request.param == "functions" else {}
    return model.double(), torch.randn(6, 3, 8, 8, dtype=torch.float64), options


def test_plain_scores_are_those_of_pathex_up_to_one_factor(case):
    model, images, options = case
    mask = pathex.Mask({name: torch.rand_like(p) > 0.3 for name, p in model.named_parameters() if p.dim() > 1})
    actual = plain_scores(model, images, mask)
    expected = pathex.score(model, "px-cvpr24", images, mask=mask, **options)
    assert actual.keys() == expected.keys()
    actual, expected = (torch.cat([scores[name].flatten() for name in scores]) for scores in (actual, expected))
    assert expected.sum() > 0
    torch.testing.assert_close(actual / actual.sum(), expected / expected.sum(), rtol=1e-8, atol=1e-16)


def test_plainest_rounds_keep_what_px_keeps(case):
    model, images, _ = case
    mask = plainest_px(model, images, sparsity=0.7, rounds=3)
    result = pathex.prune(model, "px", data=images, sparsity=0.7, rounds=3, progress=False)
    assert pathex.Mask({name: entry.bool() for name, entry in mask.items()}) == result.mask


def test_plain_rounds_keep_what_pathex_keeps_and_leave_no_trace(case):
    model, images, options = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    relu, numbers = F.relu, []
    mask = plain_px(model, images, sparsity=0.7, rounds=3, on_round=numbers.append)
    result = pathex.prune(model, "px-cvpr24", data=images, sparsity=0.7, rounds=3, progress=False, **options)
    assert pathex.Mask({name: entry.bool() for name, entry in mask.items()}) == result.mask
    assert numbers == [1, 2, 3]
    assert all(entry.all() for entry in plain_px(model, images, sparsity=0.0, rounds=2).values())
    with refused(r"nn\.ReLU or F\.relu"):
        plain_px(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 1)), torch.ones(1, 2), sparsity=0.5, rounds=1)
    assert F.relu is relu
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

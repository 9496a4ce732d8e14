import json
import multiprocessing
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import pathex
from benchmarks import equal_milliseconds, equal_multiply_adds, fewer_rounds, lite0, measure, segmentation, structured
from experiments.sweep.conftest import InProcess
from refusals import refused
from small_images import write_image, write_images
from voc_folder import write_voc


def test_differences_are_taken_in_pairs_of_one_seed():
    rows = pd.DataFrame(
        {
            "case": ["rounds=100"] * 3 + ["rounds=20"] * 3,
            "seed": [0, 1, 2, 2, 1, 0],
            "rounds": [100] * 3 + [20] * 3,
            "seconds": [10.0, 20.0, 30.0, 5.0, 5.0, 5.0],
            "same": [1.0] * 3 + [0.9, 0.8, 0.7],
            "accuracy": [0.5, 0.6, 0.7, 0.72, 0.6, 0.51],
        }
    ).assign(model="m", sparsity=0.9, dead_layers=0, disconnected=0)
    table = fewer_rounds.summary(rows).set_index("case")
    assert table.loc["rounds=20", "faster"] == pytest.approx((30 / 5 + 20 / 5 + 10 / 5) / 3)
    assert table.loc["rounds=20", "same"] == pytest.approx(0.8)
    # 0.01, 0 and 0.02: mean 0.01, deviation 0.01.
    assert table.loc["rounds=20", "difference"] == pytest.approx(0.01)
    assert table.loc["rounds=20", "standard_error"] == pytest.approx(0.01 / 3**0.5, abs=1e-5)
    assert list(table["seeds"]) == [3, 3] and table.loc["rounds=100", "difference"] == 0


def test_the_study_runs_and_goes_on(tmp_path, monkeypatch):
    executors = []
    monkeypatch.setattr(measure, "create", lambda *_: executors.append(InProcess()) or executors[-1])
    words = ["--models", "resnet20:2", "--data", write_images(tmp_path / "tiny.npz"), "--epochs", "1"]
    words += ["--method", "magnitude", "--sparsity", "0.5", "--seeds", "0", "1"]
    case = "pruning_seed=7,rounds=10,images_per_class=5"
    words += ["--cases", case, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "rows.csv")]
    assert fewer_rounds.main(words) == 0 and fewer_rounds.main(words) == 0
    assert [len(each.seen) for each in executors] == [4]
    rows = pd.read_csv(tmp_path / "rows.csv").set_index(["case", "seed"])
    # Neither other images nor fewer rounds move magnitudes.
    assert (rows["same"] == 1).all() and len(rows) == 4
    assert rows.loc[[(case, 1), ("rounds=100", 0)], "rounds"].tolist() == [10, 100]
    table = pd.read_csv(tmp_path / "rows-summary.csv")
    assert (table["difference"] == 0).all() and (table["seeds"] == 2).all()
    assert all((tmp_path / f"rows.{form}").stat().st_size > 1000 for form in ("png", "svg"))


def test_tickets_of_equal_multiply_adds_are_compared_in_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "create", lambda *_: InProcess())
    words = ["--width", "2", "--data", write_images(tmp_path / "tiny.npz"), "--method", "magnitude", "--rounds", "1"]
    words += ["--epochs", "1", "--shares", "0.5", "--seeds", "0", "1", "--runs", str(tmp_path / "runs")]
    assert equal_multiply_adds.main([*words, "--out", str(tmp_path / "rows.csv")]) == 0
    rows = pd.read_csv(tmp_path / "rows.csv")
    tickets = rows[rows["share"] < 1].set_index(["count", "seed"])
    assert len(rows) == 6 and tickets["multiply_adds"].sub(0.5).abs().max() < 0.02 * 0.5
    table = pd.read_csv(tmp_path / "rows-summary.csv").set_index("count")
    accuracy = tickets["accuracy"]
    found = (accuracy["multiply_adds"] - accuracy["weights"]).mean()
    assert table.loc["weights", "difference"] == pytest.approx(found, abs=1e-5) and table.loc["weights", "seeds"] == 2


@pytest.mark.filterwarnings("ignore")  # of exporters
def test_accuracy_stands_beside_milliseconds_of_tickets_and_of_narrower_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "create", lambda *_: InProcess())
    monkeypatch.setattr(equal_milliseconds, "_TURN", 1e-3)
    words = ["--widths", "3", "2", "--data", write_images(tmp_path / "tiny.npz"), "--sparsities", "0.5"]
    words += ["--epochs", "1", "--seeds", "0", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "rows.csv")]
    assert equal_milliseconds.main(words) == 0
    table = pd.read_csv(tmp_path / "rows-summary.csv").set_index("network")
    assert {"px 0.5", "dense 3", "dense 2"} <= {*table.index} <= {"px 0.5", "dense 3", "dense 2", "int8 3"}
    assert (table[["milliseconds_1", "milliseconds_32"]] > 0).all(axis=None) and (table["seeds"] == 1).all()
    assert table.loc["px 0.5", "engine"] == "sparse" != table.loc["dense 2", "engine"]
    assert (tmp_path / "rows.png").stat().st_size > 1000


# Windows of images that hold one of three classes: the others are named in a warning, as is the new decoder.
@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
def test_runs_of_segmentation_differ_in_ticket_and_weights_and_their_rows_name_no_folder(tmp_path, monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch")
    write_voc(tmp_path, 6, 2)
    encoder = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None).encoder
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    files = {"root": "", "weights": "encoder.safetensors", "runs": "runs", "out": "out.csv"}
    call = [word for name, file in files.items() for word in (f"--{name}", str(tmp_path / file))]
    call += ["--size", "24", "--crop", "24", "--epochs", "1", "--batch-size", "4"]
    call += ["--images-per-class", "1", "--px-rounds", "2"]
    given = segmentation.parse([*call, "--seeds", "3", "4", "--mean", "0.5"])
    found = segmentation.configs(given)
    assert len(found) == (4 * 2 + 1) * 2 * 2
    assert {(c.method, c.sparsity) for c in found if c.weights is None} == {
        ("dense", 0.0),
        *((method, sparsity) for method in ("px", "magnitude", "snip", "random") for sparsity in (0.7, 0.9)),
    }
    assert {c.seed for c in found} == {3, 4}
    assert {c.rounds for c in found if c.method == "px"} == {2}
    assert found[0].data_options["mean"] == found[0].data_options["std"] == [0.5] * 3
    assert len({(c.epochs, c.lr, c.head_lr, c.batch_size, c.images_per_class) for c in found}) == 1
    monkeypatch.setattr(segmentation, "LocalExecutor", lambda share: InProcess())
    words = [*call, "--init", "random", "--methods", "magnitude", "--sparsity", "0.5"]
    assert segmentation.main(words) == 0
    row, dense = pd.read_csv(tmp_path / "out.csv").to_dict("records")
    folder = next(path for path in (tmp_path / "runs").iterdir() if path.name.startswith("magnitude-"))
    result = json.loads((folder / "result.json").read_text())
    assert (row["init"], row["method"], row["sparsity"], row["seed"]) == ("random", "magnitude", 0.5, 0)
    assert row["test_miou"] == result["test_miou"] and result["metric"] == "miou"
    assert row["kept"] == round(0.5 * row["total"]) == pathex.Mask.load(folder / "mask.safetensors").kept
    assert (dense["method"], dense["dead_layers"]) == ("dense", 0) and 0 <= dense["test_miou"] <= 1
    about = (tmp_path / "out.json").read_text()
    assert json.loads(about)["settings"]["weights"] == "encoder.safetensors" and str(tmp_path) not in about
    for wrong, message in ((["--methods", "pxx"], "pxx"), (["--epochs", "-1"], "epochs")):
        with refused(message):
            segmentation.main([*call, *wrong])


@pytest.fixture
def protocol(tmp_path):
    generator = np.random.default_rng(3)
    for part, number, image in product(("train", "val"), range(3), range(7)):
        if part == "train" or image < 4:
            pixels = generator.integers(60 * number, 60 * number + 80, (20, 20, 3), dtype=np.uint8)
            write_image(tmp_path / "images" / part / f"n{number}" / f"{image}.png", pixels)
    torch.manual_seed(1)
    weights = tmp_path / "weights.pt"
    torch.save(pathex.models.CifarResNet(20, num_classes=7, width=16).state_dict(), weights)
    small = {"epochs": 2, "batch_size": 8, "images_per_class": 2, "px_rounds": 2}
    return lite0.Protocol("resnet20", str(weights), str(tmp_path / "images"), 16, 4, **small)


def test_networks_and_batches_follow_from_the_seed_and_only_the_classifier_is_new(protocol):
    before = torch.random.get_rng_state()
    (model, head), (again, _), (other, _) = (lite0.network(protocol, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    stored = torch.load(protocol.weights)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        same = torch.equal(value, other.state_dict()[name])
        assert same == (name != "fc.weight")
        if not name.startswith("fc."):
            assert torch.equal(value, stored[name])
    assert head is model.fc
    assert 0.005 < head.weight.std() < 0.015
    assert not head.bias.any()
    data = lite0.load_images(protocol.data, 20)
    one, same, other = (list(lite0.batches(data, protocol, seed, 1)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(one, same, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    assert [len(labels) for _, labels in one] == [8, 8, 5]
    windows = data.normalise(data.train.data).unfold(2, 16, 1).unfold(3, 16, 1)
    windows = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    owners = data.train.labels.repeat_interleave(25)
    mirrored = 0
    for images, labels in one:
        for image, label in zip(images, labels, strict=True):
            plain = (windows == image).flatten(1).all(1)
            turned = (windows == image.flip(2)).flatten(1).all(1)
            assert owners[plain | turned].tolist() == [label]
            mirrored += int(turned.sum())
    assert 0 < mirrored < 21


@pytest.mark.parametrize("method", ["px", "magnitude", "dense"])
def test_a_run_keeps_its_zeros_and_a_dense_classifier(protocol, method, monkeypatch):
    seen = []
    accuracy = lite0.accuracy
    monkeypatch.setattr(lite0, "accuracy", lambda model, *rest: seen.append(model) or accuracy(model, *rest))
    if method == "magnitude":  # trained for long enough to learn these classes
        protocol = replace(protocol, epochs=12, lr=0.05)
    row = lite0.run_case(lite0.Case(method, 0.0 if method == "dense" else 0.75, 0), protocol)
    weights = {name: p for name, p in seen[0].named_parameters() if p.dim() == 4}
    total = sum(p.numel() for p in weights.values())
    kept = total if method == "dense" else round(0.25 * total)
    assert (row["kept"], row["total"]) == (kept, total)
    assert sum(int(p.count_nonzero()) for p in weights.values()) == kept
    assert seen[0].fc.weight.count_nonzero() == seen[0].fc.weight.numel()
    # Their brightness differs; chance is a third.
    assert (0.9 if method == "magnitude" else 0) <= row["accuracy"] <= 1
    data = lite0.load_images(protocol.data, 20)
    pixels = data.normalise(data.test.data[:, :, 2:18, 2:18])
    seen[0].eval()
    assert row["accuracy"] == float((seen[0](pixels).argmax(1) == data.test.labels).double().mean())


def test_the_summary_pairs_by_seed():
    values = {("px", 0.9): (0.5, 0.6, 0.7), ("random", 0.9): (0.4, 0.4, 0.4), ("dense", 0.0): (0.9, 0.9, 0.9)}
    rows = [
        {"method": method, "sparsity": sparsity, "seed": seed, "accuracy": value, "dead_layers": 2 * seed}
        for (method, sparsity), found in values.items()
        for seed, value in enumerate(found)
    ]
    frame = lite0.summary(pd.DataFrame(rows)).set_index("method")
    assert frame.loc["px", ["accuracy", "dead_layers", "n"]].tolist() == [0.6, 2, 3]
    assert frame.loc["random", "minus_px"] == pytest.approx(-0.2)
    assert frame.loc["dense", "minus_px"] == pytest.approx(0.3)
    assert frame.loc["dense", "minus_px_error"] == pytest.approx(0.1 / 3**0.5, abs=1e-4)
    assert frame.loc["random", "accuracy_error"] == pytest.approx(0, abs=1e-12)
    assert frame["minus_px"].isna().tolist() == [True, False, False]
    with_fewer = pd.DataFrame([row for row in rows if (row["method"], row["seed"]) != ("px", 1)])
    random = lite0.summary(with_fewer).set_index("method").loc["random"]
    assert random["minus_px"] == pytest.approx(-0.2) and random["n"] == 3


def test_the_script_writes_rows_summary_and_environment(protocol, tmp_path, monkeypatch):
    # Children are forked by a process that has imported torch, as in the other tests.
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    out = tmp_path / "rows" / "tiny.csv"
    call = ["--weights", protocol.weights, "--data", protocol.data, "--model", "resnet20", "--out", str(out)]
    call += ["--methods", "magnitude", "--sparsity", "0.5", "--seeds", "0", "--epochs", "1"]
    call += ["--size", "16", "--margin", "4", "--images-per-class", "2"]
    assert lite0.main(call) == 0
    assert set(pd.read_csv(out)["method"]) == {"dense", "magnitude"}
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["settings"]["weights"] == "weights.pt"
    assert str(tmp_path) not in out.with_suffix(".json").read_text()
    assert (out.parent / "tiny-summary.csv").exists()


def test_channels_go_until_as_many_multiply_adds_are_left(protocol):
    row = structured.run_case(structured.Case("magnitude", 0.5, 0), protocol)
    dense = structured.run_case(structured.Case("dense", 0.0, 0), protocol)
    assert 0.4 < row["multiply_adds"] / dense["multiply_adds"] < 0.52
    assert row["parameters"] < dense["parameters"] and 0 <= row["accuracy"] <= 1
    rows = [
        {**row, "method": method, "seed": s, "accuracy": a + s}
        for method, a in (("px", 0.5), ("x", 0.25))
        for s in (0, 1)
    ]
    found = structured.summary(pd.DataFrame(rows)).set_index("method")
    assert found.loc["x", ["minus_px", "minus_px_error", "n"]].tolist() == [-0.25, 0, 2]

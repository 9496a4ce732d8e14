import json
import multiprocessing
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pathex
from benchmarks import lite0
from small_images import write_image


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


def test_networks_of_one_seed_are_equal_and_only_their_classifier_is_new(protocol):
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


def test_batches_follow_from_seed_and_epoch_and_are_windows_of_the_images(protocol):
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
    monkeypatch.setattr(lite0.multiprocessing, "get_context", lambda _: context)
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
    assert isinstance(lite0.network(protocol, 3, 0)[1], nn.Linear)

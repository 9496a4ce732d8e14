"""Runs that train by the kept weights alone."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

import model_factories
import pathex
from experiments.runs.outcomes import assert_same_outcome, entries, mask_of, numbers, start_and_kill, state_of, stop_at
from pathex import sparse
from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig, build_task, run, run_name
from pathex.train import TrainOptions, fabric, fit

pytest.importorskip("numba")


@pytest.fixture
def config(settings, tmp_path):
    return RunConfig(**settings, engine="sparse", precision="64-true", validation=0.25, momentum=0.9)


def with_out(config, tmp_path, name, **changes):
    return replace(config, out=str(tmp_path / name), **changes)


MOVING = {"dynamic": "rigl", "dynamic_options": {"every": 2, "until": 1.0}}


@pytest.mark.parametrize(
    "recipe",
    [
        *({}, MOVING, {"accumulate": 2}, {"average": "ema", "mixup": 0.2}, {"remedy": "sparseopt"}, {"remedy": "ham"}),
        {"kernel_every": 2, "kernel_images": 2},
    ],
)
def test_the_sparse_engine_ends_as_the_dense_one_up_to_rounding(config, tmp_path, recipe):
    by_kept = run(with_out(config, tmp_path, "sparse", **recipe))
    dense = run(with_out(config, tmp_path, "dense", engine="dense", **recipe))
    assert by_kept.folder.name == dense.folder.name
    assert [by_kept.result["engine"], dense.result["engine"]] == ["sparse", "dense"]
    rows = zip(*(entries(folder / "metrics.jsonl") for folder in (by_kept.folder, dense.folder)), strict=True)
    for one, two in rows:
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-9)
        assert one["val_accuracy"] == two["val_accuracy"] and one.keys() == two.keys()
        assert all(one[name] == pytest.approx(two[name], rel=1e-6) for name in one if "ntk" in name or "gates" in name)
    weights, wanted = (state_of(folder / "last.ckpt") for folder in (by_kept.folder, dense.folder))
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-7, atol=1e-9)
    memories = [torch.load(each.folder / "last.ckpt", weights_only=True)["optimizer"] for each in (by_kept, dense)]
    for number, memory in memories[1]["state"].items():
        torch.testing.assert_close(
            memories[0]["state"][number]["momentum_buffer"], memory["momentum_buffer"], rtol=1e-6, atol=1e-8
        )
    assert by_kept.result["test_accuracy"] == dense.result["test_accuracy"]


IMP = {"method": "imp", "method_options": {"levels": 2, "rewind": "epoch:1"}, "rounds": None}


def test_levels_train_by_their_kept_weights_too(config, tmp_path):
    config = replace(config, **IMP)
    by_kept = run(with_out(config, tmp_path, "sparse")).folder
    dense = run(with_out(config, tmp_path, "dense", engine="dense")).folder
    assert [path.parent.name for path in sorted(by_kept.rglob("engine.json"))] == [by_kept.name, "02"]  # 01 has no mask
    for level in ("01", "02"):
        masks = [mask_of(folder / "levels" / level) for folder in (by_kept, dense)]
        assert all(torch.equal(masks[0][name], kept) for name, kept in masks[1].items())
        states = [state_of(folder / "levels" / level / "last.ckpt") for folder in (by_kept, dense)]
        for name, value in states[1].items():
            torch.testing.assert_close(states[0][name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("recipe", [{"optimizer": "adamw"}, MOVING, IMP])
def test_a_run_that_was_stopped_ends_with_the_same_bits(config, tmp_path, recipe):
    config = replace(config, precision="32-true", epochs=3, **recipe)
    whole = run(with_out(config, tmp_path, "whole"))
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(config, on_event=stop_at("epoch", epoch=epoch))
    assert_same_outcome(whole.folder, run(config).folder)
    loaded = pathex.load_run(whole.folder, model_factories.tiny)
    mask = mask_of(whole.folder, "final_mask" if "dynamic" in recipe else "mask")
    assert all(not loaded.get_parameter(name)[~kept].any() for name, kept in mask.items())


def test_a_run_that_is_killed_ends_with_the_same_bits(config, tmp_path):
    config = replace(config, precision="32-true", epochs=3)
    whole = run(with_out(config, tmp_path, "whole"))
    start_and_kill(vars(config), {"event": "epoch", "epoch": 2})
    assert_same_outcome(whole.folder, run(config).folder)


def test_auto_takes_what_was_faster_once_and_says_so(config, tmp_path):
    events = []
    config = replace(config, engine="auto")
    with pytest.raises(KeyboardInterrupt):
        run(config, on_event=stop_at("epoch", epoch=1))
    plan = json.loads((tmp_path / "runs" / run_name(config) / "engine.json").read_text())
    assert plan["why"].startswith("a step takes ")
    assert plan["engine"] in ("dense", "sparse")
    result = run(replace(config, engine="sparse"), on_event=lambda *event: events.append(event)).result
    assert result["engine"] == plan["engine"]  # a run stays with its engine
    assert "engine" not in [kind for kind, _ in events]


def test_measuring_draws_no_random_numbers_and_changes_no_weights(config, tmp_path):
    dense = run(with_out(config, tmp_path, "dense", engine="dense"))
    auto = with_out(config, tmp_path, "auto", engine="auto")
    folder = tmp_path / "auto" / dense.folder.name
    with pytest.raises(KeyboardInterrupt):
        run(auto, on_event=stop_at("engine"))
    plan = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").unlink()  # as if the dense one had been faster
    assert numbers(run(replace(auto, engine="dense")).folder / "metrics.jsonl") == numbers(
        dense.folder / "metrics.jsonl"
    )
    assert set(plan["layers"]) in (set(), {"conv", "conv2", "fc"})


@pytest.mark.parametrize("first", ["dense", "sparse"])
def test_a_checkpoint_of_one_engine_resumes_in_the_other(config, tmp_path, first):
    task = build_task(config)
    images = task.pruning_set(2, 0)
    mask = pathex.prune(task.model, "magnitude", data=task.scoring_batches(images), sparsity=0.75).mask

    def train(engine, folder, epochs):
        folder.mkdir(exist_ok=True)
        own = build_task(config)
        model = own.model if engine == "dense" else sparse.convert(own.model, mask, own.example, choice="sparse")
        feed = own.feed("train", torch.device("cpu"), 16)
        prepare = (lambda network, optimizer: pathex.attach(network, mask, optimizer)) if engine == "dense" else None
        options = TrainOptions(epochs=epochs, batch_size=16, milestones=())
        loss, metric, machine = own.loss("auto", 0.0), own.metric(torch.device("cpu")), fabric("cpu", "64-true")
        fit(model, feed, options, fabric=machine, loss=loss, metric=metric, folder=folder, prepare=prepare)
        return state_of(folder / "last.ckpt")

    second = {"dense": "sparse", "sparse": "dense"}[first]
    wanted = train("dense", tmp_path / "whole", 3)
    train(first, tmp_path / "parts", 1)
    found = train(second, tmp_path / "parts", 3)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"method": "dense"}, "method 'dense' keeps all weights"),
        ({"precision": "bf16-mixed"}, "precision is 'bf16-mixed'"),
        ({"devices": 2}, "it works on one CPU"),
        (
            {"dynamic": "rigl", "dynamic_options": {"every": 1}, "average": "ema"},
            "dynamic is 'rigl' with average 'ema'",
        ),
        ({"dynamic": "set", "dynamic_options": {"every": 1}, "remedy": "ham"}, "dynamic is 'set' with remedy 'ham'"),
    ],
)
def test_where_it_cannot_train_the_sparse_engine_is_refused_and_auto_is_dense(config, changes, why, monkeypatch):
    monkeypatch.setattr("pathex.train.machine.cores", lambda: 8)
    with pytest.raises(InvalidInput, match=why):
        run(replace(config, **changes))
    if "devices" not in changes:
        assert run(replace(config, engine="auto", **changes)).result["engine"] == "dense"


def test_without_numba_auto_is_dense(config, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else original(name))
    with pytest.raises(InvalidInput, match=r"numba is not installed: pip install 'pathex\[sparse\]'"):
        run(config)
    assert run(replace(config, engine="auto")).result["engine"] == "dense"


def test_layers_that_cannot_be_sparse_are_named(config, monkeypatch):
    config = replace(config, model="model_factories:transposed", model_options={})
    with pytest.raises(InvalidInput, match=r"'up\.weight' is no weight of a plain Conv2d or Linear layer"):
        run(config)
    assert run(replace(config, engine="auto")).result["engine"] == "dense"

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import pathex
from experiments.runs.outcomes import assert_same_outcome, entries, equal, mask_of, state_of, times
from pathex.analysis import count, examine
from pathex.cli import main
from pathex.errors import InvalidInput, PathexWarning
from pathex.experiments.report.records import read_all
from pathex.experiments.runs import RunConfig, build_task, run, run_name
from pathex.train import epoch_seed, loop

IMP = {"method": "imp", "method_options": {"levels": 3}, "rounds": None, "epochs": 3}
AFTER = {"method": "magnitude-after-training", "rounds": None}
MOVING = {"method": "px", "dynamic": "rigl", "dynamic_options": {"every": 1}}
ONE_STEP = {"epochs": 1, "batch_size": 64, "augment": "none", "momentum": 0.0, "weight_decay": 0.0}


def initial(settings, **changes):
    return build_task(RunConfig(**settings | changes)).model.state_dict()


@pytest.fixture
def firsts(monkeypatch):
    """What each training began with: the first checkpoint of each folder, and how many momenta it had."""
    seen = {}
    original = loop.save_checkpoint

    def save(path, state):
        if path.name == "last.ckpt" and path.parent not in seen:
            model = {name: tensor.clone() for name, tensor in state["model"].items()}
            seen[path.parent] = {**state, "model": model, "memory": len(state["optimizer"]["state"])}
        original(path, state)

    monkeypatch.setattr(loop, "save_checkpoint", save)
    return seen


@pytest.mark.parametrize("where", ["init", "epoch:1", "learning-rate"])
def test_iterative_magnitude_pruning_from_start_to_end(where, settings, firsts):
    settings |= IMP | {"method_options": {"levels": 3, "rewind": where}}
    folder, result = (finished := run(RunConfig(**settings))).folder, finished.result
    masks = [mask_of(folder / "levels" / f"{level:02}") for level in (1, 2, 3)]
    assert [(later - earlier).kept for earlier, later in pairwise(masks)] == [0, 0]
    assert mask_of(folder) == masks[-1] and masks[-1].kept == round(0.25 * masks[-1].total) == result["kept"]
    rows = entries(folder / "history.jsonl")
    assert [(row["round"], row["rounds"], row["kept"]) for row in rows] == [
        (level, 3, mask.kept) for level, mask in enumerate(masks, 1)
    ]
    assert result["rounds"] == 3 and result["prune_seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert not (folder / "pruning_set.json").exists()

    stored = {
        "init": lambda: initial(settings),
        "epoch:1": lambda: state_of(folder / "levels" / "01" / "epoch-1.ckpt"),
        "learning-rate": lambda: state_of(folder / "levels" / "03" / "last.ckpt"),
    }[where]()
    begun = firsts[folder]
    assert equal(begun["model"], times(stored, masks[-1])) and begun["memory"] == 0
    assert [row["epoch"] for row in entries(folder / "metrics.jsonl")] == ([2, 3] if where == "epoch:1" else [1, 2, 3])


def test_magnitude_after_training_prunes_the_trained_network_once(settings, firsts):
    folder, result = (finished := run(RunConfig(**settings | AFTER))).folder, finished.result
    dense = run(RunConfig(**settings | {"method": "dense"})).folder
    trained = state_of(folder / "levels" / "01" / "last.ckpt")
    assert equal(trained, state_of(dense / "last.ckpt")), "its only level is the training of the dense network"
    mask = mask_of(folder)
    smallest = torch.cat([trained[name][mask[name]].abs() for name in mask]).min()
    assert all(not (trained[name][~mask[name]].abs() > smallest).any() for name in mask)
    assert result["rounds"] == 1 and len(list((folder / "levels").glob("*/"))) == 1
    assert equal(firsts[folder]["model"], times(trained, mask)) and firsts[folder]["memory"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"ignore": ["nothing"]},
        {"min_per_layer": 10**6},
        {"sparsity": 0.999999},
        {"allocation": {"nowhere.weight": 0.5}},
        {"start_mask": "sparse.safetensors"},
    ],
)
def test_what_pruning_refuses_shows_before_the_first_level_trains(wrong, settings, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = build_task(RunConfig(**settings)).model
    pathex.prune(model, "random", sparsity=0.9, data=torch.zeros(1, 3, 8, 8), rounds=1).mask.save("sparse.safetensors")
    monkeypatch.setattr("pathex.tasks.Task.train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InvalidInput) as caught:
        run(RunConfig(**settings | IMP | wrong))
    assert "\n" not in str(caught.value) and not Path(settings["out"]).exists()


def stop_at(kind, **known):
    def on_event(event, payload):
        if event == kind and {name: payload.get(name) for name in known} == known:
            raise KeyboardInterrupt

    return on_event


STOPS = [
    (
        IMP | {"method_options": {"levels": 2, "rewind": "epoch:1"}},
        [stop_at("epoch", level=1, epoch=2), stop_at("epoch", level=2, epoch=2), stop_at("epoch", level=None, epoch=2)],
    ),
    (AFTER, [stop_at("epoch", level=1, epoch=1), stop_at("prune_done"), stop_at("epoch", level=None, epoch=1)]),
    (MOVING, [stop_at("prune_done"), stop_at("epoch", epoch=1)]),
    (MOVING | {"method": "random", "dynamic": "set"}, [stop_at("epoch", epoch=1), stop_at("epoch", epoch=2)]),
    (IMP | MOVING | {"method": "imp", "rounds": None}, [stop_at("epoch", level=2, epoch=1), stop_at("epoch", epoch=1)]),
    ({"method": "px", "sanity": "shuffle"}, [stop_at("prune_round"), stop_at("epoch", epoch=1)]),
    ({"method": "px", "sanity": "reinit"}, [stop_at("prune_done"), stop_at("epoch", epoch=1)]),
    (IMP | {"sanity": "flip-signs"}, [stop_at("prune_done"), stop_at("epoch", level=None, epoch=2)]),
    ({"method": "small-dense"}, [stop_at("narrowed"), stop_at("epoch", epoch=1)]),
]


@pytest.mark.parametrize(("changes", "stops"), STOPS, ids=lambda value: "-".join(map(str, value))[:40])
def test_stopped_runs_end_with_the_same_numbers(changes, stops, settings, tmp_path):
    whole = run(RunConfig(**settings | changes)).folder
    broken = RunConfig(**settings | changes | {"out": str(tmp_path / "broken")})
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(broken, on_event=stop)
        assert not (tmp_path / "broken" / whole.name / "result.json").exists()
    assert_same_outcome(whole, run(broken).folder)


def small(settings, **changes):
    return run(RunConfig(**settings | {"method": "small-dense", "epochs": 1} | changes))


@pytest.mark.parametrize("source", ["sparsity", "mask"])
@pytest.mark.parametrize("match", ["parameters", "multiply-adds"])
def test_a_small_dense_network_is_the_widest_that_is_no_larger(match, source, settings):
    settings |= {"model_options": {"width": 8}}
    dense = run(RunConfig(**settings | {"method": "dense", "epochs": 0})).result
    ticket = run(RunConfig(**settings | {"method": "px", "epochs": 0}))
    options = {"match": match}
    if source == "mask":
        options["mask"] = str(ticket.folder / "mask.safetensors")
        target = {name: ticket.result[name] for name in ("parameters", "multiply_adds")}
    else:
        biases = dense["parameters"] - dense["total"]
        target = {"parameters": biases + 0.25 * dense["total"], "multiply_adds": 0.25 * dense["multiply_adds"]}
    assert dense["parameters"] > dense["total"] == ticket.result["total"]
    result = small(settings, method_options=options).result
    name = match.replace("-", "_")

    def cost(width):
        model = pathex.models.create("resnet20", 4, 3, width=width)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "multiply_adds": count(model, (3, 8, 8)).multiply_adds()}

    assert cost(result["width"])[name] <= target[name] < cost(result["width"] + 1)[name]
    assert {key: result[key] for key in ("parameters", "multiply_adds")} == cost(result["width"])
    assert result["kept"] < result["parameters"] and result["total"] == dense["total"]
    assert (result["sparsity"], result["dead_layers"], result["rounds"]) == (0.75, 0, 0)


def test_a_small_dense_network_follows_what_a_ticket_leaves_dense(settings):
    settings |= {"model_options": {"width": 8}, "sparsity": 0.9}
    every, some = (small(settings, ignore=ignore) for ignore in ((), ("blocks.[678].*",)))
    assert some.result["width"] > every.result["width"] and some.folder != every.folder


def test_a_mask_of_another_sparsity_is_refused(settings, tmp_path):
    mask = run(RunConfig(**settings | {"epochs": 0})).folder / "mask.safetensors"
    out = tmp_path / "other"
    with pytest.raises(
        InvalidInput, match=r"sparsity is 0\.7, and mask .* has 0\.75; allowed: the sparsity of the mask"
    ):
        small(settings, sparsity=0.7, method_options={"mask": str(mask)}, out=str(out))
    assert not out.exists()


def test_names_leave_out_what_has_no_effect(settings):
    def name(method, **changes):
        return run_name(RunConfig(**settings | {"method": method, "rounds": None} | changes))

    pruning_set = {"images_per_class": 7, "pruning_seed": 3}
    assert name("small-dense", min_per_layer=3, start_mask="zeros", **pruning_set) == name("small-dense")
    assert name("imp", **pruning_set) == name("imp")
    for method, changes in (
        ("small-dense", {"sparsity": 0.5}),
        ("small-dense", {"method_options": {"match": "multiply-adds"}}),
        ("small-dense", {"ignore": ("conv",)}),
        ("imp", {"method_options": {"levels": 2}}),
        ("imp", {"min_per_layer": 3}),
        ("imp", {"sanity": "reinit"}),
        ("px", pruning_set),
    ):
        assert name(method, **changes) != name(method)


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({}, 5),  # 8 steps: an update at each before 0.75 * 8
        ({"dynamic": "set", "method": "random"}, 5),
        ({"dynamic_options": {"every": 2, "until": 1.0, "fraction": 0.5}}, 3),
        ({"validation": 0.25}, 4),  # 6 steps
        ({"accumulate": 2}, 5),
        ({**IMP, "method_options": {"levels": 1, "rewind": "epoch:1"}}, 5),  # 3 epochs, the first of them not trained
    ],
)
def test_a_mask_moves_as_often_as_it_should(changes, updates, settings):
    finished = run(RunConfig(**settings | MOVING | changes))
    start, end = mask_of(finished.folder), mask_of(finished.folder, "final_mask")
    assert start != end and start.counts() == end.counts()
    weights = state_of(finished.folder / "last.ckpt")
    assert all(not weights[name][~end[name]].any() for name in end)
    assert any(weights[name][end[name] & ~start[name]].any() for name in end)
    result = finished.result
    assert result["mask_updates"] == updates
    assert result["final_overlap"] == pytest.approx((end.kept - (end - start).kept) / end.kept)
    report = examine(build_task(RunConfig(**settings)).model, end, torch.zeros(1, 3, 8, 8))
    assert (result["final_dead_layers"], result["final_disconnected"]) == (len(report.dead_layers), report.disconnected)


def test_a_mask_that_never_moves_is_told(settings):
    with pytest.warns(PathexWarning, match="the mask never moves: every is 100, and updates end before step 6"):
        finished = run(RunConfig(**settings | {"dynamic": "set"}))
    assert (finished.result["mask_updates"], finished.result["final_overlap"]) == (0, 1.0)


def test_shuffled_masks_keep_their_counts(settings):
    plain, moved = (run(RunConfig(**settings | {"method": "px", "sanity": how})) for how in ("none", "shuffle"))
    first, second = mask_of(plain.folder), mask_of(moved.folder)
    assert first != second and first.counts() == second.counts() and second.metadata["sanity"] == "shuffle"
    assert moved.result["multiply_adds"] == plain.result["multiply_adds"]
    report = examine(build_task(RunConfig(**settings)).model, second, torch.zeros(1, 3, 8, 8))
    assert moved.result["disconnected"] == report.disconnected


def test_other_weights_under_the_same_mask(settings, firsts):
    changes = {"method": "px", "ignore": ["conv"]}
    folders = [
        run(RunConfig(**settings | changes | {"sanity": how})).folder for how in ("none", "reinit", "flip-signs")
    ]
    mask, *others = map(mask_of, folders)
    assert others == [mask, mask]
    plain, fresh, flipped = (firsts[folder]["model"] for folder in folders)
    assert equal(plain, times(initial(settings), mask))
    assert equal(fresh, times(initial(settings, seed=epoch_seed(0, 1)), mask)) and not equal(fresh, plain)
    assert equal({n: t.abs() for n, t in flipped.items()}, {n: t.abs() for n, t in plain.items()})
    changed = {name for name in plain if not torch.equal(plain[name], flipped[name])}
    assert changed == set(mask)
    turned = torch.cat([(plain[name] != flipped[name])[mask[name]] for name in mask])
    assert 0.45 < turned.double().mean() < 0.55


def test_reinitialised_pretrained_networks_are_random(settings, firsts, tmp_path):
    torch.save({name: tensor + 1 for name, tensor in initial(settings).items()}, tmp_path / "weights.pt")
    trained = settings | {"weights": str(tmp_path / "weights.pt")}
    ticket, fresh = (run(RunConfig(**trained | {"sanity": how})).folder for how in ("none", "reinit"))
    mask = mask_of(ticket)
    assert mask_of(fresh) == mask != mask_of(run(RunConfig(**settings)).folder), "the mask is that of the weights"
    assert equal(firsts[ticket]["model"], times(initial(trained), mask))
    assert equal(firsts[fresh]["model"], times(initial(settings, seed=epoch_seed(0, 1)), mask))


def test_the_pruning_set_has_a_seed_of_its_own(settings, firsts):
    def chosen(**changes):
        folder = run(RunConfig(**settings | {"method": "px"} | changes)).folder
        return folder, json.loads((folder / "pruning_set.json").read_text())

    plain, set_plain = chosen()
    other, set_other = chosen(pruning_seed=3)
    _, set_all = chosen(seed=3)
    assert (set_other["seed"], set_other["indices"]) == (3, set_all["indices"]) != (0, set_plain["indices"])
    assert mask_of(other) != mask_of(plain)
    assert equal(firsts[other]["model"], times(initial(settings), mask_of(other)))
    more, set_more = chosen(images_per_class=4, rounds=5)
    assert len(set_more["indices"]) == 2 * len(set_plain["indices"]) == 16
    assert len(entries(more / "history.jsonl")) == 5 and mask_of(more) != mask_of(plain)


def stepped(settings, firsts, **changes):
    """What one step changed of the body and of the head."""
    folder = run(RunConfig(**settings | ONE_STEP | changes)).folder
    before, after = firsts[folder]["model"], state_of(folder / "last.ckpt")
    moves = {name: after[name] - before[name] for name in before if "running" not in name and "num_" not in name}
    head = {name: moves.pop(name) for name in ("fc.weight", "fc.bias")}
    return moves, head


def test_the_head_moves_at_its_own_rate(settings, firsts):
    body, head = stepped(settings, firsts)
    slow_body, fast_head = stepped(settings, firsts, lr=0.025, head_lr=0.2)
    for name, move in head.items():
        assert move.any()
        torch.testing.assert_close(fast_head[name], 2 * move, rtol=1e-4, atol=1e-7)
    for name, move in body.items():
        torch.testing.assert_close(slow_body[name], move / 4, rtol=1e-4, atol=1e-7)


def test_gradients_in_parts_and_frozen_statistics(settings, firsts):
    settings |= {"freeze_batchnorm": True, "lr": 0.01}
    (body, head), (same_body, same_head) = (stepped(settings, firsts, accumulate=parts) for parts in (1, 3))
    for name, move in (body | head).items():
        torch.testing.assert_close((same_body | same_head)[name], move, rtol=1e-3, atol=1e-6)
    for folder, begun in firsts.items():
        after = state_of(folder / "last.ckpt")
        assert all(torch.equal(after[name], begun["model"][name]) for name in after if "running" in name)
    free = run(RunConfig(**settings | {"freeze_batchnorm": False}))
    before, after = firsts[free.folder]["model"], state_of(free.folder / "last.ckpt")
    assert not any(torch.equal(after[name], before[name]) for name in after if "running" in name)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_the_loss_is_the_one_asked_for(loss, settings):
    finished = run(RunConfig(**settings | ONE_STEP | {"loss": loss}))
    model = build_task(RunConfig(**settings)).model
    model.load_state_dict(times(model.state_dict(), mask_of(finished.folder)))
    with np.load(settings["data"].removeprefix("npz:")) as archive:
        pixels, labels = torch.from_numpy(archive["train_images"]), torch.from_numpy(archive["train_labels"])[:, 0]
    mean, std = (torch.tensor(finished.result["normalisation"][name]).view(3, 1, 1) for name in ("mean", "std"))
    outputs = model.train()((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std).double()
    if loss == "mse":
        expected = (outputs - nn.functional.one_hot(labels, 4)).square().mean()
    else:
        expected = (outputs.exp().sum(1).log() - outputs[torch.arange(64), labels]).mean()
    assert finished.result["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_every_result_has_its_metric_and_its_costs_and_a_name_in_the_report(settings, tmp_path, capsys):
    methods = [
        *({"method": name} for name in ("dense", "small-dense", "px")),
        *({"method": "px", "sanity": name} for name in ("shuffle", "reinit", "flip-signs")),
        {"method": "px", "pruning_seed": 3},
        IMP | {"method_options": {"levels": 2}},
        AFTER,
        MOVING,
        MOVING | {"dynamic": "set", "method": "random"},
    ]
    for changes in methods:
        result = run(RunConfig(**settings | changes | {"epochs": 1})).result
        assert result["metric"] == "accuracy" and 0 <= result["test_accuracy"] <= 1
        assert 0 < result["kept"] <= result["parameters"] < result["multiply_adds"]
        assert ("final_overlap" in result) == ("dynamic" in changes)
        assert ("width" in result) == (changes["method"] == "small-dense")
    records, problems = read_all([Path(settings["out"])])
    assert (len(records), problems) == (len(methods), [])
    assert main(["report", settings["out"], "--out", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.startswith(f"{len(methods)} runs")
    summary = (tmp_path / "report" / "summary.md").read_text()
    for name in (
        *("dense", "small-dense", "imp", "magnitude-after-training", "px", "px (pruning_seed=3)"),
        *("px (sanity=shuffle)", "px (sanity=reinit)", "px (sanity=flip-signs)", "rigl", "set"),
    ):
        assert summary.count(f"| {name} |") == 1, name


def test_the_command_line_reaches_the_methods(settings, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings | {"rounds": None, "epochs": 1}))

    def carried_out(*words):
        assert main(["run", "--config", str(tmp_path / "r.yaml"), *words]) == 0
        out, err = capsys.readouterr()
        return json.loads((Path(out.splitlines()[-1]) / "result.json").read_text()), err

    result, err = carried_out("--method", "imp", "--method-options.levels", "3")
    assert result["rounds"] == 3
    assert err.count("imp: level 3 of 3, epoch 1 of 1: loss ") == 1 and err.count("imp: epoch 1 of 1: loss ") == 1
    result, err = carried_out("--method", "small-dense", "--method-options.match", "multiply-adds")
    assert f"dense with width {result['width']}: {result['parameters']:,} parameters, " in err
    result, _ = carried_out("--dynamic", "set", "--dynamic-options.every", "1", "--head-lr", "0.01")
    assert result["mask_updates"] == 2
    result, _ = carried_out("--augment", "resized-crop", "--augment-options.min_scale", "0.2", "--sanity", "reinit")
    assert result["kept"] > 0
    nested = ("--method-options.levels", "3", "--task-options.crop", "65", "--augment-options.min_scale", "0.2")
    assert main(["run", *nested, "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert [shown[f"{name}_options"] for name in ("method", "task", "augment")] == [
        {"levels": 3},
        {"crop": 65},
        {"min_scale": 0.2},
    ]

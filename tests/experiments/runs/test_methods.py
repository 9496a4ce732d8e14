import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import pathex
from experiments.runs.outcomes import entries, equal, mask_of, state_of, times
from pathex.analysis import count, examine
from pathex.cli import main
from pathex.errors import PathexWarning
from pathex.experiments.runs import RunConfig, build_task, run
from pathex.train import epoch_seed
from refusals import refused

IMP = {"method": "imp", "method_options": {"levels": 3}, "rounds": None, "epochs": 3}
MOVING = {"method": "px", "dynamic": "rigl", "dynamic_options": {"every": 1}}
ONE_STEP = {"epochs": 1, "batch_size": 64, "augment": "none", "momentum": 0.0, "weight_decay": 0.0}


def initial(settings, **changes):
    return build_task(RunConfig(**settings | changes)).model.state_dict()


@pytest.fixture(scope="module")
def wide(small, tmp_path_factory):
    """Settings, results of the dense network and of a ticket, and the file of its mask."""
    settings = small | {"model_options": {"width": 8}, "images_per_class": 2, "rounds": 2, "epochs": 0}
    settings |= {"model": "resnet20", "out": str(tmp_path_factory.mktemp("wide"))}
    dense, ticket = (run(RunConfig(**settings | {"method": method})) for method in ("dense", "px"))
    return settings | {"method": "small-dense"}, dense.result, ticket.result, ticket.folder / "mask.safetensors"


@pytest.mark.parametrize("source", ["sparsity", "mask"])
@pytest.mark.parametrize("match", ["parameters", "multiply-adds"])
def test_a_small_dense_network_is_the_widest_that_is_no_larger(match, source, wide):
    settings, dense, ticket, mask = wide
    options = {"match": match} | ({"mask": str(mask)} if source == "mask" else {})
    biases = dense["parameters"] - dense["total"]
    target = ticket
    if source == "sparsity":
        target = {"parameters": biases + 0.25 * dense["total"], "multiply_adds": 0.25 * dense["multiply_adds"]}
    assert biases > 0 and dense["total"] == ticket["total"]
    result = run(RunConfig(**settings | {"method_options": options})).result
    name = match.replace("-", "_")

    def cost(width):
        model = pathex.models.create("resnet20", 4, 3, width=width)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {"parameters": parameters, "multiply_adds": count(model, (3, 8, 8)).multiply_adds()}

    assert cost(result["width"])[name] <= target[name] < cost(result["width"] + 1)[name]
    assert {key: result[key] for key in ("parameters", "multiply_adds")} == cost(result["width"])
    assert result["kept"] < result["parameters"] and result["total"] == dense["total"]
    assert (result["sparsity"], result["dead_layers"], result["rounds"]) == (0.75, 0, 0)


def test_a_small_dense_network_follows_what_a_ticket_leaves_dense(wide, tmp_path):
    settings, *_, mask = wide
    ignored = ((), ("blocks.[678].*",))
    every, some = (run(RunConfig(**settings | {"sparsity": 0.9, "ignore": each})) for each in ignored)
    assert some.result["width"] > every.result["width"] and some.folder != every.folder
    other = {"sparsity": 0.7, "method_options": {"mask": str(mask)}, "out": str(tmp_path / "other")}
    with refused(r"sparsity is 0\.7, and mask .* has 0\.75; allowed: the sparsity of the mask"):
        run(RunConfig(**settings | other))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({}, 5),  # 8 steps: an update at each before 0.75 * 8
        ({"dynamic": "set", "method": "random", "dynamic_options": {"every": 2, "until": 1.0, "fraction": 0.5}}, 3),
        ({"validation": 0.25, "accumulate": 2}, 4),  # 6 steps
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


def test_a_mask_that_never_moves_is_told_and_shuffled_masks_keep_their_counts(settings):
    with pytest.warns(PathexWarning, match="the mask never moves: every is 100, and updates end before step 6"):
        finished = run(RunConfig(**settings | {"dynamic": "set"}))
    assert (finished.result["mask_updates"], finished.result["final_overlap"]) == (0, 1.0)
    plain, moved = (run(RunConfig(**settings | {"method": "px", "sanity": how})) for how in ("none", "shuffle"))
    first, second = mask_of(plain.folder), mask_of(moved.folder)
    assert first != second and first.counts() == second.counts() and second.metadata["sanity"] == "shuffle"
    assert moved.result["multiply_adds"] == plain.result["multiply_adds"]
    report = examine(build_task(RunConfig(**settings)).model, second, torch.zeros(1, 3, 8, 8))
    assert moved.result["disconnected"] == report.disconnected


def test_other_weights_under_the_same_mask(settings, firsts, tmp_path):
    reinitialised = initial(settings, model="resnet20", seed=epoch_seed(0, 1))
    random = settings | {"model": "resnet20", "method": "px", "ignore": ["conv"]}  # half of the signs of many weights
    folders = [run(RunConfig(**random | {"sanity": how})).folder for how in ("none", "reinit", "flip-signs")]
    mask, *others = map(mask_of, folders)
    assert others == [mask, mask]
    plain, fresh, flipped = (firsts[folder]["model"] for folder in folders)
    assert equal(plain, times(initial(random), mask))
    assert equal(fresh, times(reinitialised, mask)) and not equal(fresh, plain)
    assert equal({n: t.abs() for n, t in flipped.items()}, {n: t.abs() for n, t in plain.items()})
    changed = {name for name in plain if not torch.equal(plain[name], flipped[name])}
    assert changed == set(mask)
    turned = torch.cat([(plain[name] != flipped[name])[mask[name]] for name in mask])
    assert 0.45 < turned.double().mean() < 0.55
    # Pre-trained networks get random weights, under the mask of the pre-trained ones.
    torch.save({name: tensor + 1 for name, tensor in initial(settings).items()}, tmp_path / "weights.pt")
    trained = settings | {"weights": str(tmp_path / "weights.pt")}
    ticket, fresh = (run(RunConfig(**trained | {"sanity": how})).folder for how in ("none", "reinit"))
    mask = mask_of(ticket)
    assert mask_of(fresh) == mask != mask_of(run(RunConfig(**settings)).folder)
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
    assert all(move.any() for move in head.values())
    expected = {name: 2 * move for name, move in head.items()}, {name: move / 4 for name, move in body.items()}
    torch.testing.assert_close((fast_head, slow_body), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_the_loss_is_the_one_asked_for(loss, settings):
    finished = run(RunConfig(**settings | ONE_STEP | {"loss": loss}))
    model = build_task(RunConfig(**settings)).model
    model.load_state_dict(times(model.state_dict(), mask_of(finished.folder)))
    data = pathex.data.load(settings["data"])
    outputs, labels = model.train()(data.normalise(data.train.data)).double(), data.train.labels
    if loss == "mse":
        expected = (outputs - nn.functional.one_hot(labels, 4)).square().mean()
    else:
        expected = (outputs.exp().sum(1).log() - outputs[torch.arange(64), labels]).mean()
    assert finished.result["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_in_parts_and_frozen_statistics(settings, firsts):
    settings |= {"freeze_batchnorm": True, "lr": 0.01}
    whole, parts = (stepped(settings, firsts, accumulate=parts) for parts in (1, 3))
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)
    for folder, begun in firsts.items():
        after = state_of(folder / "last.ckpt")
        assert all(torch.equal(after[name], begun["model"][name]) for name in after if "running" in name)


def test_the_command_line_reaches_the_methods_and_the_report_tells_them_apart(settings, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings | {"rounds": None, "epochs": 1}))
    augment = "--augment resized-crop --augment-options.min_scale 0.2"
    for name, words in {
        "imp": "--method imp --method-options.levels 3",
        "small-dense": "--method small-dense --method-options.match multiply-adds --model resnet20",
        "set": "--dynamic set --dynamic-options.every 1",
        "dense": "--method dense",
        "elsewhere": f"{augment} --sanity reinit --head-lr 0.01 --out {tmp_path / 'other'}",
    }.items():
        assert main(["run", "--trust-code", "--config", str(tmp_path / "r.yaml"), *words.split()]) == 0
        out, err = capsys.readouterr()
        result = json.loads((Path(out.splitlines()[-1]) / "result.json").read_text())
        assert result["metric"] == "accuracy" and 0 <= result["test_accuracy"] <= 1
        assert 0 < result["kept"] <= result["parameters"] < result["multiply_adds"]
        assert result.get("mask_updates") == (2 if name == "set" else None)
        assert ("final_overlap" in result, "width" in result) == (name == "set", name == "small-dense")
        assert err.count("imp: level 3 of 3, epoch 1 of 1: loss ") == (name == "imp")
        assert err.count(f"dense with width {result.get('width')}: ") == (name == "small-dense")
    assert main(["report", settings["out"], "--out", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.startswith("4 runs")
    summary = (tmp_path / "report" / "summary.md").read_text()
    assert [summary.count(f"| {name} |") for name in ("dense", "small-dense", "imp", "set")] == [1] * 4

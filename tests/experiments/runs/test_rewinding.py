"""A run that is stopped or killed, at any moment, must end with the same weights and numbers."""

from pathlib import Path

import pytest
import torch

import pathex
from experiments.runs import outcomes
from experiments.runs.outcomes import assert_same_outcome, entries, equal, mask_of, state_of, stop_at, times
from pathex.distributed import launched
from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig, build_task, run
from pathex.experiments.runs.rewind import Plan, plan
from pathex.masks import prunable_weights
from refusals import refused

IMP = {"method": "imp", "method_options": {"levels": 3}, "rounds": None, "epochs": 3}
AFTER = {"method": "magnitude-after-training", "rounds": None}


def levels_of(folder):
    return sorted(folder.glob("levels/[0-9]*"))


@pytest.mark.parametrize("where", ["init", "epoch:1", "learning-rate"])
def test_iterative_magnitude_pruning_from_start_to_end(where, settings, firsts, tmp_path):
    settings |= IMP | {"method_options": {"levels": 3, "rewind": where}}
    events = []
    finished = run(RunConfig(**settings), on_event=lambda *event: events.append(event))
    folder, result, levels = finished.folder, finished.result, levels_of(finished.folder)
    masks = [mask_of(level) for level in levels]
    assert len(masks) == 3 and mask_of(folder) == masks[-1] and mask_of(folder).metadata["method"] == "imp"
    rows = entries(folder / "history.jsonl")
    told = [(row["round"], row["rounds"], row["kept"]) for row in rows]
    assert told == [(level, 3, mask.kept) for level, mask in enumerate(masks, 1)] and told[-1][2] == result["kept"]
    assert all(row["train_loss"] > 0 for row in rows)
    assert result["rounds"] == 3 and result["prune_seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert not (folder / "pruning_set.json").exists()
    rounds = [(e["round"], e["rounds"], e["density"]) for kind, e in events if kind == "prune_round"]
    assert rounds == [(level, 3, mask.density) for level, mask in enumerate(masks, 1)]
    trained = [(e.get("level"), e.get("levels")) for kind, e in events if kind == "epoch"]
    assert list(dict.fromkeys(trained)) == [(1, 3), (2, 3), (3, 3), (None, None)]

    epoch = 1 if where == "epoch:1" else 0
    initial = stored = build_task(RunConfig(**settings)).model.state_dict()
    if epoch:
        dense = settings | {"method": "dense", "method_options": {}, "out": str(tmp_path / "dense")}
        with pytest.raises(KeyboardInterrupt):
            run(RunConfig(**dense), on_event=stop_at("epoch", epoch=epoch))
        stored = state_of(next(Path(dense["out"]).iterdir()) / "last.ckpt")
    assert equal(firsts[levels[0]]["model"], initial)
    kept = torch.ones(masks[0].total, dtype=torch.bool)
    for number, (level, mask, place) in enumerate(zip(levels, masks, (*levels[1:], folder), strict=True), 1):
        ended, begun = state_of(level / "last.ckpt"), firsts[place]
        assert equal(begun["model"], times(ended if where == "learning-rate" else stored, mask))
        assert (begun["memory"], begun["scheduler"]["last_epoch"]) == (0, epoch)
        assert [row["epoch"] for row in entries(place / "metrics.jsonl")] == list(range(epoch + 1, 4))
        # It keeps the largest of the weights that were trained.
        weights = torch.cat([ended[name].flatten().abs() for name in mask])
        assert weights[~kept].eq(0).all() and weights[kept].ne(0).all()
        order = sorted(range(mask.total), key=lambda i: (bool(kept[i]), float(weights[i])), reverse=True)
        kept = torch.zeros(mask.total, dtype=torch.bool)
        kept[order[: round(0.25 ** (number / 3) * mask.total)]] = True
        assert torch.equal(torch.cat([entry.flatten() for entry in mask.values()]), kept)


def test_masks_and_layers_follow_the_settings(settings, tmp_path):
    settings |= {"model": "resnet20"}
    weights = prunable_weights(build_task(RunConfig(**settings)).model)
    source = torch.Generator().manual_seed(0)
    entries_of = {n: torch.rand(w.shape, generator=source) < 0.7 for n, w in weights.items() if n != "fc.weight"}
    start = pathex.Mask(entries_of)
    start.save(tmp_path / "start.safetensors")
    extra = {"start_mask": str(tmp_path / "start.safetensors"), "ignore": ("fc",), "allocation": "layer", "epochs": 1}
    folder = run(RunConfig(**settings | IMP | extra)).folder
    mask = mask_of(folder)
    assert (mask - start).kept == 0 and "fc.weight" not in mask
    shares = [count.kept / start.counts()[name].kept for name, count in mask.counts().items() if count.total > 200]
    assert max(shares) - min(shares) < 0.02
    densities = [start.density * (0.25 / start.density) ** (level / 3) for level in (1, 2, 3)]
    assert [mask_of(level).kept for level in levels_of(folder)] == [round(d * mask.total) for d in densities]


def test_magnitude_after_training_prunes_the_trained_network_once(settings, firsts):
    finished = run(RunConfig(**settings | AFTER | {"method_options": {"epochs": 1}}))
    dense = run(RunConfig(**settings | {"method": "dense", "epochs": 1})).folder
    (level,) = levels_of(finished.folder)
    trained, mask = state_of(level / "last.ckpt"), mask_of(finished.folder)
    assert equal(trained, state_of(dense / "last.ckpt"))
    smallest = torch.cat([trained[name][mask[name]].abs() for name in mask]).min()
    assert all(not (trained[name][~mask[name]].abs() > smallest).any() for name in mask)
    begun = firsts[finished.folder]
    assert equal(begun["model"], times(trained, mask)) and begun["memory"] == 0 and finished.result["rounds"] == 1


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
@pytest.mark.parametrize("method", [{}, IMP])
def test_what_pruning_refuses_shows_before_anything_trains_and_leaves_nothing(
    method, wrong, settings, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    model = build_task(RunConfig(**settings)).model
    pathex.prune(model, "random", sparsity=0.9, data=torch.zeros(1, 3, 8, 8), rounds=1).mask.save("sparse.safetensors")
    monkeypatch.setattr("pathex.tasks.Task.train", lambda *_, **__: pytest.fail("trained"))
    with refused(None):
        run(RunConfig(**settings | method | wrong | {"out": "new/runs"}))
    assert not Path("new").exists()


def test_processes_agree_though_their_batch_statistics_differ(settings, tmp_path):
    options = settings | IMP | {"method_options": {"levels": 2, "rewind": "learning-rate"}, "epochs": 1}
    with launched(2, outcomes.rewound, options, tmp_path):
        outcomes.rewound(options, tmp_path)
    first, second = (pathex.Mask.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first == second == mask_of(levels_of(tmp_path)[-1]) and first.kept == round(0.25 * first.total)


def test_options_are_read():
    def read(method="imp", epochs=4, **options):
        return plan(RunConfig(method=method, epochs=epochs, method_options=options))

    assert read() == Plan(5, 0, 4)
    assert read(rewind="epoch:3", epochs=9, levels=2) == Plan(2, 3, 9)
    assert read(rewind="learning-rate") == Plan(5, None, 4)
    assert read("magnitude-after-training") == Plan(1, None, 4)
    assert [read(levels=0.8).count(0.8**level) for level in (1, 2, 18)] == [1, 2, 18]
    with pytest.raises(InvalidInput, match=r"rewind is \['init'\]; allowed: init, learning-rate"):
        read(rewind=["init"])
    assert read(levels=0.8).count(1.0) == 1 and read(levels=7).count(0.5) == 7


TWO = IMP | {"method_options": {"levels": 2, "rewind": "epoch:1"}, "epochs": 2}
MOVING = {"dynamic": "rigl", "dynamic_options": {"every": 1}}
IN_LEVEL = stop_at("epoch", level=1, epoch=1)
STOPS = {
    "imp": (TWO | MOVING, [IN_LEVEL, stop_at("epoch", level=2), stop_at("epoch", level=None)]),
    "imp in float64": (TWO | {"precision": "64-true"}, [stop_at("epoch", level=None)]),
    "after training": (AFTER, [IN_LEVEL, stop_at("prune_done"), stop_at("epoch", level=None, epoch=1)]),
    "moving": ({"method": "px", **MOVING}, [stop_at("prune_done"), stop_at("epoch", epoch=1)]),
    "shuffled": ({"method": "px", "sanity": "shuffle"}, [stop_at("prune_round"), stop_at("epoch", epoch=1)]),
    "imp with other weights": (TWO | {"sanity": "reinit"}, [stop_at("prune_done"), stop_at("epoch", level=None)]),
    "small dense": ({"method": "small-dense", "model": "resnet20"}, [stop_at("narrowed"), stop_at("epoch", epoch=1)]),
}


@pytest.mark.parametrize("case", STOPS)
def test_stopped_runs_end_with_the_same_numbers(case, settings, tmp_path):
    changes, stops = STOPS[case]
    whole = run(RunConfig(**settings | changes)).folder
    broken = RunConfig(**settings | changes | {"out": str(tmp_path / "broken")})
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(broken, on_event=stop)
        assert not (tmp_path / "broken" / whole.name / "result.json").exists()
    folder = run(broken).folder
    assert_same_outcome(whole, folder)
    assert ("starts again" in (folder / "log.txt").read_text()) == (case == "shuffled")


def test_a_killed_run_ends_as_an_unbroken_one(settings, tmp_path):
    settings |= TWO | {"epochs": 3}
    unbroken = run(RunConfig(**settings)).folder
    broken = {**settings, "out": str(tmp_path / "broken")}
    outcomes.start_and_kill(broken, {"event": "step", "level": 2, "epoch": 3})
    (folder,) = Path(broken["out"]).iterdir()
    assert len(list(folder.glob("levels/*/mask.safetensors"))) == 1 and not (folder / "mask.safetensors").exists()
    assert len(entries(folder / "levels" / "02" / "metrics.jsonl")) == 1
    assert run(RunConfig(**broken)).folder == folder
    assert_same_outcome(unbroken, folder)

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pathex
from experiments.runs.outcomes import equal, state_of, times
from pathex.errors import InvalidInput, UnknownName
from pathex.experiments.runs import RunConfig, build_task
from pathex.experiments.runs.folder import Journal
from pathex.experiments.runs.rewind import Plan, plan, rewind, rewound_mask
from pathex.experiments.runs.tickets import train_options
from pathex.masks import prunable_weights
from pathex.train import fabric, loop

IMP = {"method": "imp", "method_options": {"levels": 3}, "sparsity": 0.8, "epochs": 3}


def found(config, folder, on_event=None):
    folder.mkdir(parents=True, exist_ok=True)
    task = build_task(config, config.validation)
    with Journal(folder, on_event) as journal:
        mask, rows = rewound_mask(config, task, folder, fabric("cpu", "32-true"), journal)
    return mask, rows, task


def level_masks(folder):
    return [pathex.Mask.load(path) for path in sorted(folder.glob("levels/*/mask.safetensors"))]


def trained(folder, level):
    return state_of(folder / "levels" / f"{level:02}" / "last.ckpt")


def first_epochs(config, folder, epochs):
    """The state of the dense network after some epochs, trained without any of the code of levels."""
    task, options = build_task(config), train_options(config)
    if epochs:
        folder.mkdir()

        def stop(kind, payload):
            if kind == "epoch" and payload["epoch"] == epochs:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            task.train(options, fabric=fabric("cpu", "32-true"), folder=folder, on_event=stop)
    return {name: tensor.clone() for name, tensor in task.model.state_dict().items()}


@pytest.mark.parametrize("where", ["init", "epoch:2", "learning-rate"])
def test_each_level_begins_with_the_stored_weights_times_its_mask(where, settings, tmp_path, monkeypatch):
    config = RunConfig(**settings | IMP | {"method_options": {"levels": 3, "rewind": where}})
    firsts = {}

    def save(path, state):
        if path.name == "last.ckpt" and str(path) not in firsts:
            copied = {name: tensor.clone() for name, tensor in state["model"].items()}
            memory, rows = len(state["optimizer"]["state"]), len(state["rows"])
            firsts[str(path)] = {**state, "model": copied, "memory": memory, "rows": rows}
        original(path, state)

    original = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", save)
    folder = tmp_path / "run"
    mask, rows, task = found(config, folder)
    start = rewind(config, task, folder)
    task.model.load_state_dict(times(task.model.state_dict(), mask))
    run_options = loop.TrainOptions(**{**vars(train_options(config)), "start": start})
    task.train(run_options, fabric=fabric("cpu", "32-true"), folder=folder)

    masks = level_masks(folder)
    assert mask == masks[-1] and len(masks) == len(rows) == 3
    epoch = 2 if where == "epoch:2" else 0
    stored = first_epochs(config, tmp_path / "first", epoch)
    begun = [firsts[str(folder / place / "last.ckpt")] for place in ("levels/01", "levels/02", "levels/03", ".")]
    assert equal(begun[0]["model"], first_epochs(config, tmp_path / "none", 0))
    for level, (beginning, kept) in enumerate(zip(begun[1:], masks, strict=True), 2):
        origin = trained(folder, level - 1) if where == "learning-rate" else stored
        assert equal(beginning["model"], times(origin, kept))
        assert beginning["memory"] == 0 == beginning["rows"]
        assert beginning["scheduler"]["last_epoch"] == epoch
        assert not equal(beginning["model"], times(trained(folder, level - 1), kept)) or where == "learning-rate"


def test_each_level_keeps_the_largest_of_the_trained_weights(settings, tmp_path):
    config = RunConfig(**settings | IMP)
    events = []
    mask, rows, task = found(config, tmp_path / "run", lambda kind, payload: events.append((kind, payload)))
    assert mask.metadata["method"] == "imp"
    total, names = mask.total, list(prunable_weights(task.model))
    kept = torch.ones(total, dtype=torch.bool)
    for level, each in enumerate(level_masks(tmp_path / "run"), 1):
        state = trained(tmp_path / "run", level)
        weights = torch.cat([state[name].flatten().abs() for name in names])
        assert weights[~kept].eq(0).all() and weights[kept].ne(0).all()
        count = round(0.2 ** (level / 3) * total)
        order = sorted(range(total), key=lambda i: (bool(kept[i]), float(weights[i])), reverse=True)
        kept = torch.zeros(total, dtype=torch.bool)
        kept[order[:count]] = True
        assert torch.equal(torch.cat([each[name].flatten() for name in names]), kept)
        row = rows[level - 1]
        assert (row["round"], row["kept"]) == (level, count) and row["train_loss"] > 0 and row["seconds"] > 0
    rounds = [(e["round"], e["rounds"], e["density"]) for kind, e in events if kind == "prune_round"]
    assert rounds == [(level, 3, each.density) for level, each in enumerate(level_masks(tmp_path / "run"), 1)]
    assert {(e["level"], e["levels"]) for kind, e in events if kind == "epoch"} == {(1, 3), (2, 3), (3, 3)}
    assert not task.model.training and all(p.grad is None for p in task.model.parameters())
    assert not task.model._load_state_dict_post_hooks


def test_masks_and_layers_follow_the_settings(settings, tmp_path):
    weights = prunable_weights(build_task(RunConfig(**settings)).model)
    source = torch.Generator().manual_seed(0)
    start = pathex.Mask(
        {n: torch.rand(w.shape, generator=source) < 0.7 for n, w in weights.items() if n != "fc.weight"}
    )
    start.save(tmp_path / "start.safetensors")
    extra = {"start_mask": str(tmp_path / "start.safetensors"), "ignore": ("fc",), "allocation": "layer", "epochs": 1}
    mask, _, _ = found(RunConfig(**settings | IMP | extra), tmp_path / "run")
    assert (mask - start).kept == 0 and "fc.weight" not in mask
    assert mask.kept == round(0.2 * mask.total)
    shares = [count.kept / start.counts()[name].kept for name, count in mask.counts().items() if count.total > 200]
    assert max(shares) - min(shares) < 0.02
    densities = [start.density * (0.2 / start.density) ** (level / 3) for level in (1, 2, 3)]
    assert [each.kept for each in level_masks(tmp_path / "run")] == [round(d * mask.total) for d in densities]


def test_magnitude_after_training_is_one_level(settings, tmp_path):
    config = RunConfig(**settings | {"method": "magnitude-after-training", "method_options": {"epochs": 1}})
    _, rows, task = found(config, tmp_path / "run")
    assert len(rows) == len(level_masks(tmp_path / "run")) == 1 and rows[0]["round"] == 1
    assert rewind(config, task, tmp_path / "run") == 0
    assert equal(dict(task.model.state_dict()), trained(tmp_path / "run", 1))
    assert not equal(dict(task.model.state_dict()), first_epochs(config, tmp_path / "none", 0))


PROCESSES = """
import json, sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parents[1])]
from test_rewinding import Journal, RunConfig, build_task, fabric, rewound_mask

config, folder = RunConfig(**json.loads(sys.argv[2])), Path(sys.argv[3])
machine = fabric("cpu", "32-true", devices=0)
mask, _ = rewound_mask(config, build_task(config), folder, machine, Journal(None, None))
mask.save(folder / f"{machine.global_rank}.safetensors")
"""


def test_processes_agree_though_their_batch_statistics_differ(settings, tmp_path):
    options = settings | IMP | {"method_options": {"levels": 2, "rewind": "learning-rate"}, "epochs": 1}
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = [str(Path(__file__).parent), json.dumps(options), str(tmp_path)]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, second = (pathex.Mask.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first == second == level_masks(tmp_path)[-1] and first.kept == round(0.2 * first.total)


def test_options_are_read():
    def read(method="imp", epochs=4, **options):
        return plan(RunConfig(method=method, epochs=epochs, method_options=options))

    assert read() == Plan(5, 0, 4)
    assert read(rewind="epoch:3", epochs=9, levels=2) == Plan(2, 3, 9)
    assert read(rewind="learning-rate") == Plan(5, None, 4)
    assert read("magnitude-after-training") == Plan(1, None, 4)
    assert [read(levels=0.8).count(0.8**level) for level in (1, 2, 18)] == [1, 2, 18]
    assert read(levels=0.8).count(1.0) == 1 and read(levels=7).count(0.5) == 7
    for message, options in {
        "unknown option of 'imp' 'rounds'. Known: epochs, levels, rewind": {"rounds": 3},
        "levels is 0; allowed: a whole number of at least 1, or a density in (0, 1)": {"levels": 0},
        "levels is 1.5; allowed": {"levels": 1.5},
        "rewind is 'epoch:5'; allowed: init, learning-rate, or epoch:K with K from 0 to 4": {"rewind": "epoch:5"},
        "rewind is 'start'; allowed": {"rewind": "start"},
        "rewind is None; allowed": {"rewind": None},
        "epochs of a level is 0; allowed": {"epochs": 0},
    }.items():
        with pytest.raises(InvalidInput, match=re.escape(message)):
            plan(RunConfig(method="imp", epochs=4, method_options=options))
    with pytest.raises(UnknownName, match="'magnitude-after-training' 'levels'"):
        read("magnitude-after-training", levels=2)

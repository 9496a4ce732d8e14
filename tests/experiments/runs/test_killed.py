"""A run that is stopped or killed, at any moment, must end with the same weights and numbers."""

import signal
from pathlib import Path

import pytest

from experiments.runs.outcomes import assert_same_outcome, entries, start_and_kill, stop_at
from pathex.experiments.runs import RunConfig, run

IMP = {"method": "imp", "method_options": {"levels": 2, "rewind": "epoch:1"}, "rounds": None, "epochs": 2}
MOVING = {"dynamic": "rigl", "dynamic_options": {"every": 1}}
STOPS = {
    "imp": (
        IMP | MOVING,
        [stop_at("epoch", level=1, epoch=1), stop_at("epoch", level=2), stop_at("epoch", level=None)],
    ),
    "after training": (
        {"method": "magnitude-after-training", "rounds": None},
        [stop_at("epoch", level=1, epoch=1), stop_at("prune_done"), stop_at("epoch", level=None, epoch=1)],
    ),
    "moving": ({"method": "px", **MOVING}, [stop_at("prune_done"), stop_at("epoch", epoch=1)]),
    "shuffled": ({"method": "px", "sanity": "shuffle"}, [stop_at("prune_round"), stop_at("epoch", epoch=1)]),
    "imp with other weights": (IMP | {"sanity": "reinit"}, [stop_at("prune_done"), stop_at("epoch", level=None)]),
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


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_run_ends_as_an_unbroken_one(settings, tmp_path):
    settings |= IMP | {"epochs": 3}
    unbroken = run(RunConfig(**settings)).folder
    broken = {**settings, "out": str(tmp_path / "broken")}
    start_and_kill(broken, {"event": "step", "level": 2, "epoch": 3})
    (folder,) = Path(broken["out"]).iterdir()
    assert len(list(folder.glob("levels/*/mask.safetensors"))) == 1 and not (folder / "mask.safetensors").exists()
    assert len(entries(folder / "levels" / "02" / "metrics.jsonl")) == 1
    assert run(RunConfig(**broken)).folder == folder
    assert_same_outcome(unbroken, folder)

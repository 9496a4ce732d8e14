import signal
from pathlib import Path

import pytest

from experiments.runs.outcomes import assert_same_outcome, start_and_kill
from pathex.experiments.runs import RunConfig, run

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")


def test_a_killed_run_ends_as_an_unbroken_one(settings, tmp_path):
    unbroken = run(RunConfig(**settings)).folder
    broken = {**settings, "out": str(tmp_path / "broken")}
    start_and_kill(broken, {"event": "prune_round", "round": 1}, tmp_path / "flag")
    (folder,) = Path(broken["out"]).iterdir()
    assert not (folder / "mask.safetensors").exists()
    start_and_kill(broken, {"event": "step", "epoch": 2}, tmp_path / "flag")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert run(RunConfig(**broken)).folder == folder
    assert "starts again" in (folder / "log.txt").read_text()
    assert_same_outcome(unbroken, folder)


def test_killed_in_the_middle_of_a_level_it_finds_the_same_masks(settings, tmp_path):
    settings |= {"method": "imp", "method_options": {"levels": 3, "rewind": "epoch:1"}, "rounds": None, "epochs": 3}
    unbroken = run(RunConfig(**settings)).folder
    broken = {**settings, "out": str(tmp_path / "broken")}
    for level, epoch in ((1, 2), (2, 3)):
        start_and_kill(broken, {"event": "step", "level": level, "epoch": epoch}, tmp_path / "flag")
        (folder,) = Path(broken["out"]).iterdir()
        assert len(list(folder.glob("levels/*/mask.safetensors"))) == level - 1
    events = []
    run(RunConfig(**broken), on_event=lambda kind, _: events.append(kind))
    assert events.count("resumed") == 2
    assert_same_outcome(unbroken, folder)

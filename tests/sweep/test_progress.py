"""Counts, stages and the estimate of the time left."""

import pytest

from pathex.sweep import Progress
from pathex.sweep.work import ENDED, ended


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_run_goes_through_its_stages() -> None:
    progress = Progress(["a", "b"], Clock())
    assert progress.counts == {"done": 0, "running": 0, "failed": 0, "waiting": 2}
    progress("a", "start", {})
    assert progress.counts["running"] == 1 and progress.running["a"].text == "loading"
    progress("a", "prune_round", {"round": 3, "rounds": 100, "density": 0.5})
    assert progress.running["a"].text == "prune 3/100"
    progress("a", "epoch", {"epoch": 1, "epochs": 4, "train_loss": 2.5})
    progress("a", "step", {"epoch": 2, "epochs": 4, "step": 1, "steps": 2})
    stage = progress.running["a"]
    assert (stage.text, stage.loss, stage.done) == ("epoch 2/4", 2.5, 0.375)
    progress("a", "something new", {})
    progress("a", ENDED, ended("done"))
    progress("b", "start", {})
    progress("b", ENDED, ended("failed", "why"))
    assert progress.counts == {"done": 1, "running": 0, "failed": 1, "waiting": 0} and not progress.running


@pytest.mark.parametrize("kind", ["busy", "again"])
def test_a_run_that_has_to_wait_is_counted_as_waiting(kind: str) -> None:
    progress = Progress(["a"], Clock())
    progress("a", "start", {})
    progress("a", kind, {"error": "lost"})
    assert progress.counts["waiting"] == 1
    progress("a", "start", {})
    assert progress.counts == {"done": 0, "running": 1, "failed": 0, "waiting": 0}


def test_the_time_left_follows_from_the_work_done() -> None:
    clock = Clock()
    progress = Progress("abcd", clock)
    progress("a", ENDED, {**ended("done"), "before": True})  # before: not worked for
    assert progress.seconds_left() is None
    for name in "bc":
        progress(name, "start", {})
    progress("c", "resumed", {"stage": "training", "epoch": 5, "epochs": 10})
    clock.now += 30
    progress("b", "epoch", {"epoch": 5, "epochs": 10, "train_loss": 1.0})
    progress("c", "epoch", {"epoch": 6, "epochs": 10, "train_loss": 1.0})
    # 0.5 and 0.1 of a run in 30 seconds; left are 0.5, 0.4 and a whole one.
    assert progress.seconds_left() == pytest.approx(1.9 * 30 / 0.6)
    progress("b", ENDED, ended("done"))
    assert progress.seconds_left() == pytest.approx(1.4 * 30 / 1.1)
    progress("c", ENDED, ended("done"))
    progress("d", "start", {})
    progress("d", ENDED, ended("failed", "why"))
    assert progress.seconds_left() == 0

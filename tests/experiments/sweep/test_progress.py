import pytest

from pathex.experiments.sweep import Progress
from pathex.experiments.sweep.work import ENDED, ended


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_run_goes_through_its_stages():
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
    progress = Progress(["a"], Clock())
    for kind in ("busy", "again"):
        progress("a", "start", {})
        assert progress.counts == {"done": 0, "running": 1, "failed": 0, "waiting": 0}
        progress("a", kind, {"error": "lost"})
        assert progress.counts["waiting"] == 1


def test_trainings_of_one_run_follow_each_other():
    progress = Progress(["imp", "transfer"], Clock())

    def told(name, kind, **payload):
        progress(name, kind, payload)
        return progress.running[name].text, progress.running[name].done

    told("imp", "start")
    first = {"level": 1, "levels": 3}
    assert told("imp", "step", epoch=2, epochs=4, step=1, steps=2, **first) == ("level 1/3 epoch 2/4", 0.375 / 4)
    assert told("imp", "prune_round", round=1, rounds=3, density=0.5)[0] == "prune 1/3"
    assert told("imp", "epoch", epoch=4, epochs=4, level=3, levels=3) == ("level 3/3 epoch 4/4", 0.75)
    assert told("imp", "epoch", epoch=2, epochs=4) == ("epoch 2/4", 0.875)

    told("transfer", "start")
    one = {"task": 7, "target": 1, "targets": 2}
    assert told("transfer", "resumed", stage="training", epoch=4, epochs=4, **one) == ("target 1/2 epoch 4/4", 0.5)
    assert told("transfer", "epoch", epoch=1, epochs=4, **{**one, "target": 2}) == ("target 2/2 epoch 1/4", 0.625)
    assert progress.running["transfer"].begun == 0.5

    progress = Progress(["imp"], Clock())  # levels that were over before are no work
    told("imp", "start")
    for level in (1, 2):
        told("imp", "resumed", stage="level", level=level, levels=3)
        told("imp", "prune_round", round=level, rounds=3, density=0.5)
    done = told("imp", "resumed", stage="training", epoch=1, epochs=4, level=3, levels=3)
    assert done == ("level 3/3 epoch 1/4", 2.25 / 4) and progress.running["imp"].begun == 2.25 / 4


def test_the_time_left_follows_from_the_work_done():
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

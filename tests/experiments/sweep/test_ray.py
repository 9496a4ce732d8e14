from pathlib import Path

import pytest

from experiments.runs.outcomes import WITH_TESTS, assert_same_outcome
from pathex.errors import InvalidInput
from pathex.experiments.sweep import SweepConfig, create, plan, sweep

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ray")


def swept(small, **options):
    listed = ({"lr": 1e30}, {"data": "npz:nowhere.npz"})
    config = SweepConfig(
        settings=small, grid={"method": ["random", "magnitude"], "seed": [0, 1]}, list=listed, **options
    )
    planned = plan(config)
    kinds = []
    result = sweep(
        planned.runs,
        Path(config.out),
        lambda: create(config, planned.runs.values()),
        on_event=lambda name, kind, payload: kinds.append((name, kind)),
    )
    return result, kinds


def test_ray_and_local_are_equal(small, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # the folders are relative, and Ray's processes start elsewhere
    ours, _ = swept(small, out="local", concurrent=2)
    capfd.readouterr()
    theirs, kinds = swept(small, out="ray", concurrent=2, executor="ray")
    said = capfd.readouterr()
    assert (said.out + said.err).strip() == ""
    assert (ours.done, len(ours.failed)) == (theirs.done, len(theirs.failed)) == (4, 2)
    assert theirs.failed == ours.failed
    finished = [path.parent for path in (tmp_path / "ray").glob("*/result.json")]
    assert len(finished) == 4
    for folder in finished:
        assert_same_outcome(folder, tmp_path / "local" / folder.name)
    assert {"start", "prune_round", "epoch", "ended"} <= {kind for _, kind in kinds}
    again, _ = swept(small, out="ray", concurrent=2, executor="ray")
    assert (again.before, len(again.failed)) == (4, 2)


def test_a_lost_task_is_started_again(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", WITH_TESTS["PYTHONPATH"])
    settings = {**small, "model": "model_factories:dies"}
    listed = ({}, {"model_options.flag": str(tmp_path / "flag")})
    config = SweepConfig(settings=settings, list=listed, executor="ray", concurrent=2, out=str(tmp_path / "out"))
    planned = plan(config)
    dying, reviving = planned.runs
    again = []
    result = sweep(
        planned.runs,
        tmp_path / "out",
        lambda: create(config, planned.runs.values()),
        retries=1,
        on_event=lambda name, kind, payload: again.append(name) if kind == "again" else None,
    )
    assert sorted(again) == sorted([dying, reviving])
    assert result.done == 1 and list(result.failed) == [dying] and "lost" in result.failed[dying]


def test_a_cluster_that_does_not_answer_is_bad_input(small, tmp_path):
    config = SweepConfig(settings=small, grid={"seed": [0]}, executor="ray", address="auto", out=str(tmp_path))
    with pytest.raises(InvalidInput, match="address 'auto'"):
        create(config, plan(config).runs.values())

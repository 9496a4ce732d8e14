import json
import os
from pathlib import Path

import pytest

from pathex.errors import InvalidInput
from pathex.experiments.sweep import SweepConfig, create, plan, sweep

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("ray")


def numbers(folder):
    found = {}
    for path in sorted(folder.glob("*/result.json")):
        rows = [json.loads(path.read_text()), *map(json.loads, (path.parent / "metrics.jsonl").open())]
        found[path.parent.name] = [{key: row[key] for key in row if "seconds" not in key} for row in rows]
    return found


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
    assert numbers(tmp_path / "ray") == numbers(tmp_path / "local") and len(numbers(tmp_path / "ray")) == 4
    for mask in (tmp_path / "ray").glob("*/mask.safetensors"):
        assert mask.read_bytes() == (tmp_path / "local" / mask.parent.name / mask.name).read_bytes()
    assert {"start", "prune_round", "epoch", "ended"} <= {kind for _, kind in kinds}
    again, _ = swept(small, out="ray", concurrent=2, executor="ray")
    assert (again.before, len(again.failed)) == (4, 2)


MODULE = """
import os, signal
from pathlib import Path
from pathex.models import create

def dies(num_classes, in_channels, flag=None, **options):
    if flag is None or not Path(flag).exists():
        if flag is not None:
            Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return create("resnet20", num_classes=num_classes, in_channels=in_channels, **options)
"""


def test_a_lost_task_is_started_again(small, tmp_path, monkeypatch):
    (tmp_path / "dying_task.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    settings = {**small, "model": "dying_task:dies"}
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

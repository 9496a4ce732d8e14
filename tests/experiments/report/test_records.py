import json

import pytest

from damage import spoil
from pathex.experiments.report.records import read_all


def test_a_run_is_found_at_any_depth_and_once(make_run):
    folder = make_run("px")
    below = folder / "wandb" / "run-1" / "files"  # what a logger keeps below a run is no run
    below.mkdir(parents=True)
    (below / "config.yaml").write_text("wandb_version: 1\n")
    records, problems = read_all([folder, folder.parent.parent])
    assert ([record.folder for record in records], problems) == ([folder], [])


def test_what_a_record_tells(make_run):
    folder = make_run("px", method_options={"redraw": True}, allocation={"layer.0.weight": 0.5})
    dense, segmented = make_run("dense", 0.9), make_run("px", 0.9, 1, metric="miou", test_miou=0.25)
    (dense / "environment.json").unlink()
    first, second, third = read_all([folder, dense, segmented])[0]
    assert first.config["method_options.redraw"] is True
    assert first.config["allocation"] == {"layer.0.weight": 0.5}
    assert first.environment == {"torch": "2.x", "device.name": "cpu", "device.threads": 1}
    assert (first.metric, first.task) == ("accuracy", "classification")
    assert (second.sparsity, second.environment) == (0.0, {})  # whatever its settings say
    assert (third.metric, third.task, third.value) == ("miou", "segmentation", 0.25)


def test_a_failed_run_is_left_out_with_its_error_until_it_is_done(make_run):
    good, failed, again, alone = make_run("px"), make_run("random"), make_run("snip"), make_run("grasp")
    for folder in (failed, again, alone):
        (folder / "failed.json").write_text(json.dumps({"error": "TrainingDiverged: loss is nan", "traceback": "..."}))
    (failed / "result.json").unlink()
    for name in ("result.json", "config.yaml", "metrics.jsonl"):
        (alone / name).unlink()
    records, problems = read_all([good.parent])
    assert {record.folder for record in records} == {good, again}
    assert {(problem.folder, problem.reason) for problem in problems} == {
        (failed, "failed: TrainingDiverged: loss is nan"),
        (alone, "failed: TrainingDiverged: loss is nan"),
    }


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("result.json", None, "not finished: 4 of 4 epochs trained"),
        ("result.json", "[]", "holds no object"),
        ("result.json", "{", "result.json cannot be read"),
        ("result.json", '{"status": "training"}', "status 'training'"),
        ("result.json", '{"status": "done", "kept": 1, "total": 2}', "holds no test_accuracy"),
        ("config.yaml", None, "config.yaml is missing"),
        ("config.yaml", "a: [1", "config.yaml cannot be read"),
        ("config.yaml", "method: px", "holds no sparsity, model, data, seed"),
        ("metrics.jsonl", "{", "metrics.jsonl cannot be read"),
        ("result", {"test_accuracy": None}, "result.json holds no test_accuracy"),
        ("result", {"test_accuracy": float("nan")}, "result.json holds no test_accuracy"),
        ("result", {"metric": "miou", "test_miou": "?"}, "result.json holds no test_miou"),
        ("result", {"tasks": [{"task": 0}]}, "result.json holds tasks without zero_shot and fine_tuned"),
        ("result", {"tasks": {"a": 1}}, "result.json holds tasks without zero_shot and fine_tuned"),
    ],
)
def test_a_broken_run_is_left_out_with_its_reason(make_run, name, content, reason):
    good, broken = make_run("px"), make_run("random", **(content if name == "result" else {}))
    if name != "result":
        spoil(broken / name, content)
    records, [problem] = read_all([good, broken])
    assert ([record.folder for record in records], problem.folder) == ([good], broken)
    assert reason in problem.reason and "\n" not in problem.reason

import json

import pytest

from damage import spoil
from pathex.experiments.report.records import read_all


def test_a_run_is_found_at_any_depth_and_once_and_what_its_record_tells(make_run):
    folder = make_run("px", method_options={"redraw": True}, allocation={"layer.0.weight": 0.5})
    spoil(folder / "wandb" / "run-1" / "files" / "config.yaml", "wandb_version: 1\n")  # of a logger: no run
    records, problems = read_all([folder, folder.parent.parent])
    assert ([record.folder for record in records], problems) == ([folder], [])
    dense, segmented = make_run("dense", 0.9), make_run("px", 0.9, 1, metric="miou", test_miou=0.25)
    (dense / "environment.json").unlink()
    first, second, third = read_all([folder, dense, segmented])[0]
    assert first.config["method_options.redraw"] is True
    assert first.config["allocation"] == {"layer.0.weight": 0.5}
    assert first.environment == {"torch": "2.x", "device.name": "cpu", "device.threads": 1}
    assert (first.metric, first.task) == ("accuracy", "classification")
    assert (second.sparsity, second.environment) == (0.0, {})  # whatever its settings say
    assert (third.metric, third.task, third.value) == ("miou", "segmentation", 0.25)


def test_runs_behind_links_are_found_once_under_the_name_of_their_own_folder(make_run, tmp_path):
    runs, links = {make_run("px"), make_run("random")}, tmp_path / "links"
    parent = next(iter(runs)).parent
    for place, folder in (("latest", "px-0.9-0"), ("loop", tmp_path)):
        (parent / place).symlink_to(parent / folder)
    assert {record.folder for record in read_all([parent])[0]} == runs
    links.mkdir()
    (links / "one").symlink_to(parent / "px-0.9-0")
    assert [record.folder for record in read_all([links])[0]] == [links / "one"]
    (links / "all").symlink_to(parent)
    assert {record.folder.name for record in read_all([links])[0]} == {folder.name for folder in runs}


def test_a_failed_run_is_left_out_with_its_error_until_it_is_done(make_run):
    good, failed, again, alone = make_run("px"), make_run("random"), make_run("snip"), make_run("grasp")
    for folder in (failed, again, alone):
        (folder / "failed.json").write_text(json.dumps({"error": "TrainingDiverged: loss is nan", "traceback": "..."}))
    (failed / "result.json").unlink()
    for name in ("result.json", "config.yaml", "metrics.jsonl"):
        (alone / name).unlink()
    records, problems = read_all([good.parent])
    assert {record.folder for record in records} == {good, again}
    assert {problem.folder for problem in problems} == {failed, alone}
    assert {problem.reason for problem in problems} == {"failed: TrainingDiverged: loss is nan"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("result.json", None, "not finished: 4 of 4 epochs trained"),
        ("result.json", "[]", "holds no object"),
        ("result.json", "{", "result.json cannot be read"),
        ("result.json", '{"status": "training"}', "status 'training'"),
        ("result.json", "3", "holds no object"),
        ("result.json", "NaN", "holds no object"),
        ("result.json", b"\xff\x00", "result.json cannot be read"),
        ("result.json", "[" * 9999, "result.json cannot be read"),
        (
            "result.json",
            '{"status": "done", "files": 3, "kept": 1, "total": 2, "test_accuracy": 1}',
            "has digests that are no names with values: 3",
        ),
        ("result.json/a", "", "result.json cannot be read (it is no regular file)"),
        ("environment.json", "[]", "holds no object"),
        ("config.yaml", b"\x00", "config.yaml cannot be read"),
        ("config.yaml", "a: &a [*a]", "nested deeper"),
        ("config.yaml", "{method: px, sparsity: .nan, model: a, data: b, seed: 0}", "config.yaml holds sparsity nan"),
        ("config.yaml", "{method: px, sparsity: null, model: a, data: b, seed: 0}", "config.yaml holds no sparsity"),
        ("config.yaml", "{method: null, sparsity: 0, model: a, data: b, seed: null}", "holds no method, seed"),
        (
            "config.yaml",
            "{method: px, sparsity: 1.5, model: a, data: b, seed: 0}",
            "sparsity 1.5; allowed: a number in",
        ),
        ("config.yaml", "{method: px, sparsity: -1, model: a, data: b, seed: 0}", "config.yaml holds sparsity -1"),
        ("config.yaml", '{method: px, sparsity: 0, model: "\\ud800", data: b, seed: 0}', "cannot be written again"),
        ("result", {"classes": ["\ud800"]}, "its name or its files cannot be written again"),
        ("config.yaml", "{method: [px], sparsity: 0.9, model: a, data: b, seed: 0}", "config.yaml holds method ['px']"),
        ("metrics.jsonl", '{"epoch": 1, "train_loss": "low"}', "no epoch with numbers"),
        ("metrics.jsonl", '{"epoch": 1}\n{"ep', "metrics.jsonl cannot be read"),
        ("mask.safetensors", "", "mask.safetensors cannot be read"),
        (
            "config.yaml",
            "{method: a, sparsity: 0.9, model: a, data: b, seed: 0, dynamic: {}}",
            "config.yaml holds dynamic {}",
        ),
        ("result", {"bytes": []}, "result.json holds bytes []"),
        ("result", {"bytes": "many"}, "result.json holds bytes 'many'"),
        ("result", {"total": 0}, "result.json holds total 0"),
        ("result", {"classes": 7}, "classes 7"),
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
    if name == "result.json/a":
        spoil(broken / "result.json", None)
    if name != "result":
        spoil(broken / name, content)
    records, [problem] = read_all([good, broken])
    assert ([record.folder for record in records], problem.folder) == ([good], broken)
    assert reason in problem.reason and "\n" not in problem.reason

import json

from pathex.experiments.report.records import read_all


def test_a_run_is_found_at_any_depth_and_once(make_run):
    folder = make_run("px")
    records, problems = read_all([folder, folder.parent.parent])
    assert ([record.folder for record in records], problems) == ([folder], [])


def test_what_a_logger_keeps_below_a_run_is_no_run(make_run):
    folder = make_run("px")
    below = folder / "wandb" / "run-1" / "files"
    below.mkdir(parents=True)
    (below / "config.yaml").write_text("wandb_version: 1\n")
    records, problems = read_all([folder.parent])
    assert [record.folder for record in records] == [folder] and problems == []


def test_options_get_dotted_names_and_other_mappings_stay_whole(make_run):
    folder = make_run("px", method_options={"redraw": True}, allocation={"layer.0.weight": 0.5})
    [record] = read_all([folder])[0]
    assert record.config["method_options.redraw"] is True
    assert record.config["allocation"] == {"layer.0.weight": 0.5}


def test_a_dense_run_has_no_sparsity_whatever_its_settings_say(make_run):
    [record] = read_all([make_run("dense", 0.9)])[0]
    assert (record.pruned, record.sparsity) == (False, 0.0)


def test_environment_is_flat_and_may_be_missing(make_run):
    first, second = make_run("px"), make_run("random")
    (second / "environment.json").unlink()
    found = {record.method: record.environment for record in read_all([first.parent])[0]}
    assert found == {"px": {"torch": "2.x", "device.name": "cpu", "device.threads": 1}, "random": {}}


def test_an_accuracy_that_is_no_number_leaves_the_run_out(make_run):
    good, bad = make_run("px"), make_run("random")
    result = json.loads((bad / "result.json").read_text()) | {"test_accuracy": None}
    (bad / "result.json").write_text(json.dumps(result))
    records, [problem] = read_all([good, bad])
    assert [record.folder for record in records] == [good]
    assert problem.reason == "result.json holds no test_accuracy"


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


def test_the_metric_is_the_one_the_result_names(make_run):
    records, [problem] = read_all(
        [
            make_run("px"),
            make_run("px", 0.9, 1, metric="miou", test_miou=0.25),
            make_run("snip", metric="miou", test_miou="?"),
        ]
    )
    assert [(record.metric, record.task) for record in records] == [
        ("accuracy", "classification"),
        ("miou", "segmentation"),
    ]
    assert records[1].value == 0.25 and problem.reason == "result.json holds no test_miou"


def test_a_metric_that_is_not_finite_leaves_the_run_out(make_run):
    _, [problem] = read_all([make_run("px"), make_run("snip", test_accuracy=float("nan"))])
    assert problem.reason == "result.json holds no test_accuracy"


def test_tasks_without_their_two_numbers_leave_the_run_out(make_run):
    _, problems = read_all([make_run("px"), make_run("snip", tasks=[{"task": 0}]), make_run("grasp", tasks={"a": 1})])
    assert {problem.reason for problem in problems} == {"result.json holds tasks without zero_shot and fine_tuned"}

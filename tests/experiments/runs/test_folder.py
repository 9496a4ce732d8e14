import json
import re

import pytest
import torch

from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig, check_same, environment, finished_result, locked, write_json
from pathex.experiments.runs.folder import Journal, read_json, write_config, write_lines


def test_json_files_are_written_whole_and_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"kept": 3})
    write_lines(tmp_path / "b.jsonl", [{"round": 1}, {"round": 2}])
    assert read_json(tmp_path / "a.json") == {"kept": 3}
    assert (tmp_path / "b.jsonl").read_text() == '{"round": 1}\n{"round": 2}\n'
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.jsonl"}


def test_only_a_result_that_says_done_ends_a_run(tmp_path):
    assert finished_result(tmp_path) is None
    write_json(tmp_path / "result.json", {"status": "stopped"})
    assert finished_result(tmp_path) is None
    write_json(tmp_path / "result.json", {"status": "done", "kept": 1})
    assert finished_result(tmp_path) == {"status": "done", "kept": 1}
    (tmp_path / "result.json").write_text('{"status": "do')
    with pytest.raises(InvalidInput, match=r"result\.json cannot be read"):
        finished_result(tmp_path)


def test_the_same_settings_on_another_device_are_the_same_run(tmp_path):
    check_same(tmp_path, RunConfig())
    write_config(tmp_path, RunConfig(device="cpu"))
    check_same(tmp_path, RunConfig(out="elsewhere"))
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("capture: auto\n")  # as earlier versions wrote it
    check_same(tmp_path, RunConfig())
    with pytest.raises(InvalidInput, match="seed 0 there, 1 here"):
        check_same(tmp_path, RunConfig(seed=1))
    (tmp_path / "config.yaml").write_text("method: px\nlearning_rate: 1.0\n")  # of another version
    with pytest.raises(InvalidInput, match=r"config\.yaml cannot be read .*learning_rate"):
        check_same(tmp_path, RunConfig())


def test_a_lock_ends_with_its_block_and_clears_what_killed_processes_left_half_written(tmp_path):
    left = [tmp_path / ".config.yaml.17.tmp", tmp_path / "levels" / "1" / ".checkpoint.pt.17.tmp"]
    left[1].parent.mkdir(parents=True)
    for path in left:
        path.write_text("half")
    for _ in range(2):
        with locked(tmp_path), pytest.raises(InvalidInput, match="in use"), locked(tmp_path):
            pass
    assert not any(path.exists() for path in left)


def test_the_journal_logs_events_but_not_steps_and_passes_all_on(tmp_path):
    events = []
    with pytest.raises(ZeroDivisionError), Journal(tmp_path, lambda *event: events.append(event)) as journal:
        journal("step", {"step": 1})
        journal("epoch", {"epoch": 1})
        journal.note("a remark")
        raise ZeroDivisionError("in the middle")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert events == [("step", {"step": 1}), ("epoch", {"epoch": 1})]
    assert [re.sub(r"^[\d-]+ [\d:,]+ ", "", line) for line in lines] == [
        'epoch {"epoch": 1}',
        "a remark",
        "stopped by ZeroDivisionError: in the middle",
    ]


def test_the_environment_is_plain_and_names_no_machine(monkeypatch):
    monkeypatch.setattr("platform.node", lambda: pytest.fail("asked for the name of the machine"))
    known = environment(torch.device("cpu"))
    assert json.loads(json.dumps(known)) == known
    assert known["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert known["device"] == "cpu"

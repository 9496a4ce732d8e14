"""The number of threads that training goes fastest with, and who may set it."""

import json
import os
import subprocess
import sys

import pytest
import torch

from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig, run_name, settle_threads
from pathex.train import machine, pace


@pytest.fixture(autouse=True)
def as_it_was():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("most", "numbers"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])])
def test_the_fastest_number_is_found_and_torch_keeps_its_own(monkeypatch, most, numbers):
    tried = []

    def timed(step, number):
        tried.append(torch.get_num_threads())
        return abs(torch.get_num_threads() - 3) + number

    monkeypatch.setattr(machine, "timeit", timed)
    torch.set_num_threads(most)
    threads, seconds = pace(free=True)
    assert (threads, set(tried)) == (min(numbers, key=lambda number: abs(number - 3)), set(numbers))
    assert seconds == pytest.approx((abs(threads - 3) + 5) / 5) and torch.get_num_threads() == most
    tried.clear()
    assert pace(free=False)[0] == most and set(tried) == {most}


def test_a_step_takes_time():
    threads, seconds = pace(free=True)
    assert 1 <= threads <= torch.get_num_threads() and 0 < seconds < 60


@pytest.mark.parametrize("begun", [1, 2, 3])
def test_a_run_goes_on_with_the_threads_it_was_begun_with(tmp_path, begun):
    config = RunConfig(out=str(tmp_path), device="cpu")
    settle_threads(config, 2)
    assert torch.get_num_threads() == 2
    folder = tmp_path / run_name(config)
    folder.mkdir()
    (folder / "environment.json").write_text(json.dumps({"threads": begun}))
    settle_threads(config, 2)
    assert torch.get_num_threads() == begun


def test_several_processes_and_wrong_settings_change_nothing(tmp_path):
    before = torch.get_num_threads()
    settle_threads(RunConfig(out=str(tmp_path), devices=2, device="cpu"), before + 1)
    with pytest.raises(InvalidInput, match="device"):
        settle_threads(RunConfig(out=str(tmp_path), device="gpu"), before + 1)
    assert torch.get_num_threads() == before


ASKED = """
import os, sys
from pathex.cli import experiments
{before}
print(experiments._threads_are_free(), os.environ.get("OMP_WAIT_POLICY"))
"""
CASES = [
    ("", {}, "True passive"),
    ("", {"OMP_WAIT_POLICY": "active"}, "True active"),
    ("", {"OMP_NUM_THREADS": "2"}, "False None"),
    ("", {"MKL_NUM_THREADS": "1"}, "False None"),
    ("import torch; torch.set_num_threads(1)", {}, "False None"),
]


@pytest.mark.parametrize(("before", "variables", "answer"), CASES)
def test_a_number_that_the_user_chose_is_left_alone(before, variables, answer):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    words = [sys.executable, "-c", ASKED.format(before=before)]
    said = subprocess.run(words, env={**own, **variables}, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == answer

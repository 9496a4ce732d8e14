import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.measure import CaseFailed, Process, Table, peak_memory, problem, quartiles, tensor_peak
from pathex.errors import InvalidInput

CPU = torch.device("cpu")


def test_quartiles():
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.filterwarnings("ignore")  # of the profiler, on machines without a GPU
def test_peak_of_tensors_is_of_what_lives_at_a_time():
    def work():
        for _ in range(3):
            a = torch.empty(1000, dtype=torch.float32)
            b = torch.empty(500, dtype=torch.float32)
            del a, b

    assert 6000 <= tensor_peak(CPU, work) < 7000


def answer(connection, number):
    connection.send((number, torch.get_num_threads()))
    if connection.recv() == "fail":
        row = {}
        with peak_memory(row):
            torch.ones(50 * 2**20, dtype=torch.uint8)
        connection.send(row.get("resident_mib"))
        raise InvalidInput("no\nway")
    raise SystemExit(3)


def test_processes_answer_and_tell_their_memory_and_why_they_ended():
    failing, stopping = cases = [Process(answer, 7, threads=1) for _ in range(2)]
    try:
        assert [case.answer() for case in cases] == [(7, 1)] * 2
        for case, word in zip(cases, ("fail", "stop"), strict=True):
            case.tell(word)
        memory = failing.answer()  # MiB above the start, where the system tells
        assert 45 <= memory <= 80 if Path("/proc/self/clear_refs").exists() else memory is None
        for case, message in ((failing, "InvalidInput: no way"), (stopping, "ended with code 3")):
            with pytest.raises(CaseFailed, match=message):
                case.answer()
    finally:
        for case in cases:
            case.end()


def test_rows_are_written_as_they_come_beside_their_environment(tmp_path):
    table = Table(tmp_path / "rows" / "tried.csv", {"count": 7, "folder": tmp_path.name}, threads=2)
    for row, text in (({"x": 1}, "x\n1\n"), ({"x": 2, "y": 3}, "x,y\n1,\n2,3\n")):
        table.add(row)
        assert (tmp_path / "rows" / "tried.csv").read_text() == text
    about = json.loads((tmp_path / "rows" / "tried.json").read_text())
    assert about["settings"]["count"] == 7 and about["environment"]["threads"] == 2 and "torch" in about["environment"]
    assert pd.api.types.is_integer_dtype(table.frame()["y"])


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet20", 0, 32),
        ("resnet18_tiny", 0, 64),
        ("torchvision:resnet18", 0, 224),
        ("timm:vit_tiny_patch16_224", 32, 32),
    ],
)
def test_networks_and_images_fit_each_other_and_follow_from_the_seed(name, size, expected):
    state = torch.get_rng_state()
    model, x, y = problem(name, 1, 3, 0, CPU, size)
    again, _, _ = problem(name, 1, 3, 0, CPU, size)
    assert x.shape == (1, 3, expected, expected) and y.tolist() == [0]
    assert model(x).shape == (1, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)

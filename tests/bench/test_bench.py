"""From suites to files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pathex.bench import ERROR, Bench, Row, Suite, find, measure, names
from pathex.bench import _measuring as measuring
from pathex.bench._processes import CaseFailed, Fresh
from pathex.bench._running import checked
from pathex.errors import InvalidInput, UnknownName

BENCH = Bench(torch.device("cpu"), 1, 5, 2)


def suite(rows: list[Row | type[BaseException]]) -> Suite:
    def given(_: Bench, options: Mapping[str, Any]) -> Iterator[Row]:
        for row in rows:
            if isinstance(row, type):
                raise row
            yield {"count": options["count"], **row}

    def plot(frame: pd.DataFrame, path: Path) -> None:
        path.with_name(path.name + ".png").write_text(f"{len(frame)} rows")

    defaults = {"count": 3, "names": ("a",), "rate": 0.5, "wide": False, "kind": "x", "more": None}
    return Suite("tried", "tries", defaults, given, plot, summary=lambda frame: [f"{len(frame)} measured"])


def test_suites_bear_their_names_and_explain_their_options() -> None:
    for name in names():
        found = find(name)
        assert found.name == name and found.title and "\n" not in found.title
        assert set(found.help) <= set(found.defaults)
    with pytest.raises(UnknownName, match=r"'round'\. Did you mean 'rounds'"):
        find("round")


def test_options_are_of_the_types_of_their_defaults() -> None:
    options = checked(suite([]), {"names": ["b", "c"], "rate": 1, "more": "2GiB"})
    assert options == {"count": 3, "names": ("b", "c"), "rate": 1.0, "wide": False, "kind": "x", "more": "2GiB"}
    assert checked(suite([]), {"names": "b"})["names"] == ("b",)
    for name, value in (("count", 1.5), ("count", True), ("names", [1]), ("rate", "x"), ("wide", 1), ("kind", 2)):
        with pytest.raises(InvalidInput, match=f"--{name} must be"):
            checked(suite([]), {name: value})
    with pytest.raises(UnknownName, match=r"unknown option of pathex bench tried: 'counts'.*Known: count"):
        checked(suite([]), {"counts": 1})


def test_rows_environment_and_plot_are_written(tmp_path: Path) -> None:
    seen: list[Row] = []
    outcome = measure(suite([{"x": 1}, {"x": 2, "y": 3}]), BENCH, tmp_path / "a" / "b", {"count": 7}, seen.append)
    assert outcome.rows.to_dict("list")["count"] == [7, 7] and len(seen) == 2
    assert [path.name for path in outcome.files] == ["tried.csv", "tried.json", "tried.png", "tried.svg"]
    assert (tmp_path / "a/b/tried.csv").read_text() == "count,x,device,threads,y\n7,1,cpu,1,\n7,2,cpu,1,3\n"
    about = json.loads((tmp_path / "a/b/tried.json").read_text())
    assert about["settings"]["count"] == 7 and (about["settings"]["seed"], about["settings"]["repeats"]) == (5, 2)
    assert about["environment"]["threads"] == 1 and about["finished"] is True
    assert about["summary"] == outcome.summary == ["2 measured"]
    assert (tmp_path / "a/b/tried.png").read_text() == "2 rows"


def test_what_was_measured_is_kept_when_it_is_cut_short(tmp_path: Path) -> None:
    for stop in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(stop):
            measure(suite([{"x": 1}, stop]), BENCH, tmp_path / stop.__name__)
        assert pd.read_csv(tmp_path / stop.__name__ / "tried.csv")["x"].tolist() == [1]
        assert json.loads((tmp_path / stop.__name__ / "tried.json").read_text())["finished"] is False
        assert (tmp_path / stop.__name__ / "tried.png").exists()
    with pytest.raises(KeyboardInterrupt):
        measure(suite([KeyboardInterrupt]), BENCH, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_failed_cases_are_rows_that_are_not_drawn(tmp_path: Path) -> None:
    outcome = measure(suite([{"x": 1}, {"x": 2, ERROR: "broken"}]), BENCH, tmp_path)
    assert outcome.failed[0]["x"] == 2
    assert (tmp_path / "tried.png").read_text() == "1 rows"
    assert pd.read_csv(tmp_path / "tried.csv")["error"].tolist()[1] == "broken"


def test_threads_hold_while_a_suite_runs(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    threads: list[int] = []
    two = Bench(torch.device("cpu"), before + 1, 0, 1)
    measure(suite([{}]), two, tmp_path, on_row=lambda _: threads.append(torch.get_num_threads()))
    assert threads == [before + 1] and torch.get_num_threads() == before


def test_quartiles() -> None:
    assert measuring.quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert measuring.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.filterwarnings("ignore")  # of the profiler, on machines without a GPU
def test_peak_of_tensors_is_of_what_lives_at_a_time() -> None:
    def work() -> None:
        for _ in range(3):
            a = torch.empty(1000, dtype=torch.float32)
            b = torch.empty(500, dtype=torch.float32)
            del a, b

    assert 6000 <= measuring.tensor_peak(torch.device("cpu"), work) < 7000


@pytest.mark.skipif(measuring.start_of_peak() is None, reason="the system does not tell")
def test_resident_memory_is_above_the_start() -> None:
    start = measuring.start_of_peak()
    held = torch.ones(50 * 2**20, dtype=torch.uint8)
    assert 45 <= (measuring.resident_peak(start) or 0) <= 80
    del held
    assert measuring.resident_peak(None) is None


def answer(pipe: Any, number: int) -> None:
    pipe.send((number, torch.get_num_threads()))
    if pipe.recv() == "fail":
        raise InvalidInput("no\nway")
    raise SystemExit(3)


@pytest.mark.parametrize(("word", "message"), [("fail", "InvalidInput: no way"), ("stop", "ended with exit code 3")])
def test_a_process_answers_and_tells_why_it_ended(word: str, message: str) -> None:
    case = Fresh(answer, 7, threads=1)
    try:
        assert case.receive() == (7, 1)
        case.send(word)
        with pytest.raises(CaseFailed, match=message):
            case.receive()
        case.send("still there?")
    finally:
        case.end()

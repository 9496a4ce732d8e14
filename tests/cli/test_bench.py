import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import pathex.bench
from pathex.bench import ERROR, Bench, Row, Suite

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Bench, Mapping[str, Any]]]:
    """What the suites ``one`` and ``two`` were asked for; they measure nothing."""
    asked: list[tuple[Bench, Mapping[str, Any]]] = []

    def rows(bench: Bench, options: Mapping[str, Any]) -> Iterator[Row]:
        asked.append((bench, options))
        bench.say("at work")
        yield {"name": "a", "count": options["count"], "same": 1}
        if options["count"] == 13:
            raise KeyboardInterrupt
        yield {"name": "b", "count": options["count"] + 1, "same": 1} | ({ERROR: "no"} if options["count"] == 7 else {})

    def plot(_: pd.DataFrame, path: Path) -> None:
        path.with_name(path.name + ".png").write_text("drawn")

    help_ = {"count": "How many.", "names": "Some names."}
    defaults = {"count": 3, "names": ("a", "b"), "limit": None}
    made = {n: Suite(n, f"things of {n}", defaults, rows, plot, help_, lambda _: ["told"]) for n in ("one", "two")}
    monkeypatch.setattr(pathex.bench, "find", made.__getitem__)
    monkeypatch.setattr(pathex.bench, "names", lambda: list(made))
    return asked


def test_without_a_suite_they_are_listed(command: Command, suites: list[Any]) -> None:
    code, out, err = command("bench")
    assert (code, err, suites) == (0, "", [])
    assert "one" in out and "things of two" in out


def test_rows_are_shown_and_written(command: Command, suites: list[Any]) -> None:
    code, out, err = command(
        "bench", "one", "--threads", "1", "--repeats", "2", "--seed", "4", "--out", "o", "--count", "5", "--names", "c"
    )
    assert code == 0
    ((bench, options),) = suites
    assert (bench.device.type, bench.threads, bench.repeats, bench.seed) == ("cpu", 1, 2, 4)
    assert dict(options) == {"count": 5, "names": ("c",), "limit": None}
    assert "at work" in err and "told" in out and "same 1" in out
    assert out.splitlines()[-1] == str(Path("o/one.svg"))
    assert pd.read_csv("o/one.csv")["count"].tolist() == [5, 6]
    assert json.loads(Path("o/one.json").read_text())["settings"]["count"] == 5


def test_all_suites_in_turn(command: Command, suites: list[Any]) -> None:
    assert command("bench", "all", "--out", "o")[0] == 0
    assert len(suites) == 2 and Path("o/one.csv").exists() and Path("o/two.csv").exists()


@pytest.mark.parametrize("how", ["file", "option"])
def test_the_suite_may_be_named_elsewhere(command: Command, suites: list[Any], how: str) -> None:
    code, out, _ = command("bench", "two", "--count", "8", "--print_config")
    settings = yaml.safe_load(out)
    assert code == 0 and (settings["suite"], settings["count"], settings["names"]) == ("two", 8, ["a", "b"])
    Path("c.yaml").write_text(out)
    words = ("--config", "c.yaml") if how == "file" else ("--suite=two", "--count", "8")
    assert command("bench", *words, "--limit", "9")[0] == 0
    assert dict(suites[0][1]) == {"count": 8, "names": ("a", "b"), "limit": 9}


def test_help_tells_the_options_of_the_suite(command: Command, suites: list[Any]) -> None:
    code, out, _ = command("bench", "one", "--help")
    assert (
        code == 0 and "How many." in out and "--repeats" in out and "Measures things of one." in " ".join(out.split())
    )
    code, out, _ = command("bench", "--help")
    assert code == 0 and "--count" not in out


def test_a_failed_case_is_told_by_the_exit_code(command: Command, suites: list[Any]) -> None:
    code, out, _ = command("bench", "one", "--count", "7")
    assert code == 1 and "no" in out and pd.read_csv("bench/one.csv")["error"].notna().tolist() == [False, True]


def test_ctrl_c_keeps_the_rows_so_far(command: Command, suites: list[Any]) -> None:
    code, _, err = command("bench", "one", "--count", "13")
    assert code == 130 and err.splitlines()[-1] == "pathex: stopped; the rows so far are saved"
    assert pd.read_csv("bench/one.csv")["name"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("one", "--counts", "3"), "unknown option '--counts'. Did you mean '--count'? Known: --count"),
        (("one", "--count", "x"), "--count must be a whole number, got 'x'"),
        (("one", "--repeats", "0"), "--repeats must be at least 1, got 0"),
        (("one", "--threads", "0"), "--threads must be at least 1, got 0"),
        (("one", "--seed", "-1"), "--seed must be at least 0, got -1"),
        (("one", "--device", "tpu"), "unknown device 'tpu'"),
        (("one", "--out", "file"), "--out 'file' is a file"),
        (("one", "two"), "'two' is too much"),
        (("all", "--count", "3"), "unknown option '--count'"),
        (("--config", "nowhere.yaml"), "--config: File does not exist"),
    ],
)
def test_errors_are_one_line(command: Command, suites: list[Any], words: tuple[str, ...], message: str) -> None:
    Path("file").touch()
    code, out, err = command("bench", *words)
    assert (code, out, suites) == (2, "", [])
    assert err.splitlines()[-1].startswith(f"pathex: error: {message}")
    assert not Path("bench").exists()


def test_an_unknown_suite_is_one_line(command: Command) -> None:
    code, _, err = command("bench", "round")
    assert code == 2 and err.startswith("pathex: error: unknown suite 'round'. Did you mean 'rounds'?")

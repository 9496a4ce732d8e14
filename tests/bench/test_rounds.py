"""The suite ``rounds``."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pathex.bench import ERROR, Bench, find, measure
from pathex.bench import _rounds as rounds
from pathex.bench._processes import CaseFailed, Fresh
from pathex.bench._rounds import Pace, parse_case, with_ratios
from pathex.errors import InvalidInput, UnknownName

CPU = torch.device("cpu")
SUITE = find("rounds")


def test_labels_name_a_method_and_its_options_and_those_of_prune() -> None:
    assert parse_case("px") == ("px", {}, {})
    assert parse_case("px:redraw=true,calibration_images=7") == ("px", {}, {"redraw": True, "calibration_images": 7})
    assert parse_case("px:rounds=25,redraw=true") == ("px", {"rounds": 25}, {"redraw": True})
    assert parse_case("plain:rounds=3") == ("plain", {"rounds": 3}, {})
    for label in SUITE.defaults["methods"]:
        parse_case(label)


def test_on_a_gpu_captured_rounds_are_measured_too_if_nothing_is_said() -> None:
    options = {**SUITE.defaults, "images": 2}
    labels = {name: rounds._settings(Bench(torch.device(name), 1, 0, 1), options)[1] for name in ("cpu", "cuda")}
    assert labels["cuda"] == [*labels["cpu"], "px:capture=true", "px:capture=true,tf32=true", "synflow:capture=true"]
    for label in labels["cuda"]:
        parse_case(label)
    said = {**options, "methods": ["px"]}
    assert rounds._settings(Bench(torch.device("cuda"), 1, 0, 1), said)[1] == ["plain", "px"]


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        ("pxx", UnknownName, "pxx"),
        ("px:speed=3", InvalidInput, "has no option 'speed'"),
        ("px:redraw", InvalidInput, "cannot read 'redraw'"),
        ("px:[", InvalidInput, "cannot read"),
        ("px:sparsity=0.5", InvalidInput, "has no option 'sparsity'"),
        ("plain:redraw=true", UnknownName, "redraw"),
    ],
)
def test_labels_that_say_nothing_known_are_refused(label: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message.replace("[", r"\[")):
        parse_case(label)


def test_ratios_are_to_the_plain_row() -> None:
    plain = {"round_seconds": 4.0, "seconds": 400.0, "cpu_seconds": 9.0, "tensor_mib": 100.0}
    px = {"round_seconds": 2.0, "seconds": 50.0, "cpu_seconds": 4.5, "tensor_mib": 25.0}
    assert with_ratios(px, plain) == {
        **px,
        "time_ratio": 0.5,
        "cpu_ratio": 0.5,
        "memory_ratio": 0.25,
        "speed_up": 2.0,
        "prune_speed_up": 8.0,
    }
    assert with_ratios(plain, plain)["speed_up"] == 1.0
    assert with_ratios(px, {ERROR: "broken"}) == px


def test_a_turn_is_five_rounds_and_waiting_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(rounds, "now", lambda _: clock[0])
    ours, theirs = multiprocessing.Pipe()
    waited: list[dict[str, Any]] = []

    class Waiting(Pace):
        def wait(self, message: tuple[dict[str, Any], bool]) -> None:
            waited.append(message[0])
            clock[0] += 1000.0

    def prune(on_round: Callable[..., None]) -> str:
        for _ in range(7):
            clock[0] += 2.0
            on_round()
        clock[0] += 1.0  # the report
        return "mask"

    pace = Waiting(theirs, CPU)
    assert pace.around(prune) == "mask"
    assert [row["timed_rounds"] for row in waited] == [5]
    assert "seconds" not in waited[0] and waited[0]["round_seconds"] == 2.0
    assert pace.row()["seconds"] == 15.0
    ours.close()


class FakeCase(Fresh):
    """A case that measures at once and, in its second turn, meets Ctrl-C or an error."""

    ended: list[str]

    def __init__(self, _: object, label: str, *__: object, threads: int) -> None:
        self.label, self.turn = label, 0

    def send(self, message: object) -> None:
        self.turn += 1

    def receive(self) -> Any:
        row = {"round_seconds": 4.0 if self.label == "plain" else 2.0, "timed_rounds": 5 * self.turn}
        row |= {"round_low": 1.0, "round_high": 5.0}
        if self.turn == 2 and self.label == "random":
            raise CaseFailed("killed")
        if self.turn == 2 and self.label == "synflow":
            raise KeyboardInterrupt
        return (row if self.turn else {}), self.turn == 2

    def end(self) -> None:
        FakeCase.ended.append(self.label)


def test_ctrl_c_tells_what_is_known_and_ends_the_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCase.ended = []
    monkeypatch.setattr(rounds, "Fresh", FakeCase)
    with pytest.raises(KeyboardInterrupt):
        measure(SUITE, Bench(CPU, 1, 0, 1), tmp_path, {"methods": ("random", "synflow", "px")})
    frame = pd.read_csv(tmp_path / "rounds.csv").set_index("method")
    assert frame.index.tolist() == ["plain", "random", "synflow", "px"]
    assert frame["timed_rounds"].tolist()[2:] == [5, 5]  # cut off in their second turn
    assert frame.loc["random", "error"] == "killed"
    assert frame.loc["px", "speed_up"] == 2.0
    assert '"finished": false' in (tmp_path / "rounds.json").read_text()
    assert FakeCase.ended == ["plain", "random", "synflow", "px"]


def test_aims_are_told_for_the_setting_they_were_set_for() -> None:
    frame = pd.DataFrame({"method": ["plain", "px", "snip"], "speed_up": [1.0, 1.5, 2.0], "image_size": 32})
    asked = frame.assign(model="resnet20", images=100, device="cpu")
    assert SUITE.summary(asked) == [
        "px: a round is 1.50 times as fast as the plain one (aim: at least 1.6, not reached)"
    ]
    assert SUITE.summary(asked.assign(model="resnet32")) == ["px: a round is 1.50 times as fast as the plain one"]
    assert SUITE.summary(frame.drop(columns="speed_up")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds must be at least 1"),
        ({"images": 0}, "--images must be at least 1"),
        ({"image_size": -1}, "--image-size"),
        ({"sparsity": 1.0}, r"--sparsity must be a fraction in \[0, 1\), got 1.0"),
        ({"methods": ("pxx",)}, "unknown method 'pxx'"),
        ({"model": "r"}, "unknown model 'r'"),
        ({"memory": "much"}, "memory must be"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        measure(SUITE, Bench(CPU, 1, 0, 1), tmp_path / "bench", options)
    assert not (tmp_path / "bench").exists()


def test_one_round_in_fresh_processes(tmp_path: Path) -> None:
    options = {"methods": ("magnitude", "magnitude:rounds=2"), "rounds": 1, "images": 2}
    outcome = measure(SUITE, Bench(CPU, 1, 0, 1), tmp_path, options)
    assert outcome.failed == []
    frame = pd.read_csv(tmp_path / "rounds.csv")
    assert frame["method"].tolist() == ["plain", "magnitude", "magnitude:rounds=2"]
    assert frame["rounds"].tolist() == [1, 1, 2]
    assert frame["kept"].tolist() == [4876] * 3  # of 270,896
    assert (frame["seconds"] >= frame["round_seconds"]).all()
    assert frame["speed_up"].notna().all() and frame["prune_speed_up"].notna().all()
    assert (frame["tensor_mib"] > 1).all()  # three copies of 270,896 weights, or their masks and scores
    assert (tmp_path / "rounds.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".png", ".svg"]

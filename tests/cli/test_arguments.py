import json
import re
import shlex
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from pathex.cli.experiments import HEADINGS, RUN
from pathex.cli.masks import PRUNE
from pathex.cli.parser import Command, parse
from pathex.experiments.runs import check_config
from refusals import refused


@dataclass(frozen=True)
class Options:
    """Options.

    Attributes:
        names: Names.
        batch_size: Images, as in ``this``.
        rate: A rate.
        rounds: Rounds or null.
        strict: Whether.
        kind: Which.
        extra_options: More.
    """

    names: tuple[str, ...] = ()
    batch_size: int = 8
    rate: float = 0.5
    rounds: int | None = None
    strict: bool = False
    kind: Literal["a", "b"] = "a"
    extra_options: dict[str, Any] = field(default_factory=dict)


COMMANDS = {
    "try": Command("Tries.", options=Options, positional=("names", "*", "The names.")),
    "one": Command("Tries one.", options=Options, positional=("names", "?", "A name.")),
    "none": Command("Tries none.", options=Options),
}
FILES = {
    "good.yaml": "names: [a, b]\nbatch_size: 2\nrate: 0.25\nextra_options: {width: 1}\n",
    "broken.yaml": "a: [1",
    "unknown.yaml": "rte: 1",
    "wrong.yaml": "rate: x",
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)


FROM_FILE = {"names": ["a", "b"], "batch_size": 2, "rate": 0.75, "extra_options": {"width": 1, "depth": 3}}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--batch-size 4", {"batch_size": 4}),
        ("--batch_size 4", {"batch_size": 4}),
        ("--batch-size=4", {"batch_size": 4}),
        ("a b --rate 1", {"names": ["a", "b"], "rate": 1.0}),
        ("--rate 1 a b", {"names": ["a", "b"], "rate": 1.0}),
        (
            "--extra-options.a 8 --extra_options.b true --extra_options.c=d-e",
            {"extra_options": {"a": 8, "b": True, "c": "d-e"}},
        ),
        ("--config good.yaml --rate 0.75 --extra-options.depth 3", FROM_FILE),
    ],
)
def test_words_are_read_and_override_a_file(words, expected):
    name, found = parse(["try", *words.split()], COMMANDS)
    assert name == "try" and replace(found, names=list(found.names)) == Options(**{"names": [], **expected})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--names 'a, b' --strict --rate 1", {"names": ["a", "b"], "strict": True, "rate": 1.0}),
        ("--names *.bias --strict", {"names": ["*.bias"], "strict": True}),
        ("--names=fc --strict=false", {"names": ["fc"]}),
        ("--strict true --names [a,b]", {"names": ["a", "b"], "strict": True}),
    ],
)
def test_lists_need_no_brackets_and_switches_no_value(words, expected):
    _, found = parse(["none", *shlex.split(words)], COMMANDS)
    assert replace(found, names=list(found.names)) == Options(**{"names": [], **expected})


def test_options_of_a_method_follow_its_name():
    words = "prune --method px --method.redraw true --method.smooth=tangent"
    _, pruning = parse(words.split(), {"prune": PRUNE})
    assert pruning.method == "px" and pruning.method_options == {"redraw": True, "smooth": "tangent"}


@pytest.mark.parametrize("given", ["0.25,0.5", "[0.25, 0.5]", "0.5"])
def test_milestones_are_fractions_and_the_error_tells_how_to_write_them(given):
    _, config = parse(["run", "--milestones", given], {"run": RUN})
    assert list(config.milestones) == json.loads(f"[{given.strip('[]')}]")
    for wrong in ("30,60", "1", "0.5,90"):
        with refused(
            r"milestones is .*allowed: fractions of the training, such as 0.5,0.75 for epochs 80 and 120 of 160"
        ):
            check_config(parse(["run", "--milestones", wrong], {"run": RUN})[1])


def test_a_test_fraction_is_an_option_of_the_data():
    for words in (["--test-fraction", "0.25"], ["--test_fraction=0.25"], ["--data-options.test_fraction", "0.25"]):
        _, config = parse(["run", "--data", "imagefolder:x", *words], {"run": RUN})
        assert config.data_options == {"test_fraction": 0.25}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("try --batch-size x", "--batch-size is 'x'; allowed: a whole number"),
        ("try --rate=high", "--rate is 'high'; allowed: a number"),
        ("try --rounds x", "--rounds is 'x'; allowed: a whole number or null"),
        ("try --strict x", "--strict is 'x'; allowed: true or false"),
        ("try --extra-options 3", "--extra-options is '3'; allowed: a mapping such as {name: value}"),
        ("try --kind c", "--kind is 'c'; allowed: a, b"),
        ("try --batch-size", "--batch_size: expected one argument"),
        ("try --batchsize 3", "unknown option '--batchsize'. Did you mean '--batch-size'.*Known: --batch-size"),
        ("try --batch 3", "unknown option '--batch'"),
        ("try --config nowhere.yaml", "--config: 'nowhere.yaml' cannot be read .No such file"),
        ("try --config broken.yaml", "'broken.yaml' cannot be read .*expected"),
        ("try --config unknown.yaml", "does not accept option 'rte'"),
        ("try --config wrong.yaml", '"rate".*float.*x'),
        ("none stray", "unrecognized arguments: stray"),
        ("one a b", "unrecognized arguments: b"),
    ],
)
def test_errors_are_one_line_that_names_option_and_allowed_values(words, said):
    with refused(said):
        parse(words.split(), COMMANDS)


def test_help_is_readable_and_ends_with_0(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["try", "--help"], COMMANDS)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: pathex try [NAMES] [--option value ...]")
    with pytest.raises(SystemExit):
        parse(["run", "--help"], {"run": RUN})
    run = capsys.readouterr().out
    headings = [line for line in run.splitlines() if re.fullmatch("[a-z, ]+:", line)]
    assert headings == ["options:", *(f"{heading}:" for heading in HEADINGS.values()), "example:"]
    assert run.splitlines()[-1].startswith("  pathex run --method px")
    assert "The names." in text and "Images, as in this." in text and "``" not in text

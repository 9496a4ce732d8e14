from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from pathex.cli.masks import PRUNE
from pathex.cli.parser import Command, parse
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


def test_options_of_a_method_follow_its_name():
    words = "prune --method px --method.redraw true --method.smooth=tangent"
    _, pruning = parse(words.split(), {"prune": PRUNE})
    assert pruning.method == "px" and pruning.method_options == {"redraw": True, "smooth": "tangent"}


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
        ("try --config nowhere.yaml", "config.*File does not exist.*nowhere.yaml"),
        ("try --config broken.yaml", "Problems parsing"),
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
    assert "The names." in text and "Images, as in this." in text and "``" not in text

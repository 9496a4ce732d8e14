from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pathex.cli.masks import PRUNE
from pathex.cli.parser import Command, parse
from pathex.errors import InvalidInput


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


def read(*words: str) -> Options:
    name, options = parse(["try", *words], COMMANDS)
    assert name == "try" and isinstance(options, Options)
    return options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("--batch-size", "4"), {"batch_size": 4}),
        (("--batch_size", "4"), {"batch_size": 4}),
        (("--batch-size=4",), {"batch_size": 4}),
        (("a", "b", "--rate", "1"), {"names": ["a", "b"], "rate": 1.0}),
        (("--rate", "1", "a", "b"), {"names": ["a", "b"], "rate": 1.0}),
        (
            ("--extra-options.width", "8", "--extra_options.on", "true", "--extra_options.name=a-b"),
            {"extra_options": {"width": 8, "on": True, "name": "a-b"}},
        ),
    ],
)
def test_words_are_read(words: tuple[str, ...], expected: dict[str, Any]) -> None:
    found = read(*words)
    assert replace(found, names=list(found.names)) == replace(Options(names=[]), **expected)  # type: ignore[arg-type]


def test_a_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("names: [a, b]\nbatch_size: 2\nrate: 0.25\nextra_options: {width: 1}\n")
    options = read("--config", str(file), "--rate", "0.75", "--extra-options.depth", "3")
    assert (list(options.names), options.batch_size, options.rate) == (["a", "b"], 2, 0.75)
    assert options.extra_options == {"width": 1, "depth": 3}
    words = ["prune", "--method", "px", "--method.redraw", "true", "--method.smooth=tangent"]
    _, pruning = parse(words, {"prune": PRUNE})
    assert pruning.method == "px" and pruning.method_options == {"redraw": True, "smooth": "tangent"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch-size", "x"), "--batch-size is 'x'; allowed: a whole number"),
        (("--rate=high",), "--rate is 'high'; allowed: a number"),
        (("--rounds", "x"), "--rounds is 'x'; allowed: a whole number or null"),
        (("--strict", "x"), "--strict is 'x'; allowed: true or false"),
        (("--extra-options", "3"), "--extra-options is '3'; allowed: a mapping such as {name: value}"),
        (("--kind", "c"), "--kind is 'c'; allowed: a, b"),
        (("--batch-size",), "--batch_size: expected one argument"),
        (("--batchsize", "3"), "unknown option '--batchsize'. Did you mean '--batch-size'.*Known: --batch-size"),
        (("--batch", "3"), "unknown option '--batch'"),
        (("--config", "nowhere.yaml"), "config.*File does not exist.*nowhere.yaml"),
        ("a: [1", "Problems parsing"),
        ("rte: 1", "does not accept option 'rte'"),
        ("rate: x", '"rate".*float.*x'),
    ],
)
def test_errors_are_one_line_that_names_option_and_allowed_values(
    tmp_path: Path, words: tuple[str, ...] | str, said: str
) -> None:
    if isinstance(words, str):
        (tmp_path / "c.yaml").write_text(words)
        words = ("--config", str(tmp_path / "c.yaml"))
    with pytest.raises(InvalidInput, match=said) as caught:
        read(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("words", "culprit"), [(("none", "stray"), "stray"), (("one", "a", "b"), "b")])
def test_free_words_are_refused_where_none_belong(words: tuple[str, ...], culprit: str) -> None:
    with pytest.raises(InvalidInput, match=f"unrecognized arguments: {culprit}"):
        parse(words, COMMANDS)


def test_help_is_readable_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: pathex try [NAMES] [--option value ...]")
    assert "The names." in text and "Images, as in this." in text and "``" not in text

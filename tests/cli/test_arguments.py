from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

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


def test_defaults() -> None:
    assert read() == Options()


@pytest.mark.parametrize("words", [("--batch-size", "4"), ("--batch_size", "4"), ("--batch-size=4",)])
def test_hyphens_underscores_and_equals_are_alike(words: tuple[str, ...]) -> None:
    assert read(*words).batch_size == 4


def test_dotted_overrides_are_typed_by_yaml() -> None:
    options = read("--extra-options.width", "8", "--extra_options.on", "true", "--extra_options.name=a-b")
    assert options.extra_options == {"width": 8, "on": True, "name": "a-b"}


@pytest.mark.parametrize("words", [("a", "b", "--rate", "1"), ("--rate", "1", "a", "b")])
def test_free_words_stand_before_or_after_the_options(words: tuple[str, ...]) -> None:
    assert (list(read(*words).names), read(*words).rate) == (["a", "b"], 1.0)


def test_free_words_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("names: [a, b]\n")
    assert list(read("--config", str(tmp_path / "c.yaml")).names) == ["a", "b"]


def test_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("batch_size: 2\nrate: 0.25\nextra_options: {width: 1}\n")
    options = read("--config", str(file), "--rate", "0.75", "--extra-options.depth", "3")
    assert (options.batch_size, options.rate, options.extra_options) == (2, 0.75, {"width": 1, "depth": 3})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch-size", "x"), ["--batch-size is 'x'; allowed: a whole number"]),
        (("--rate=high",), ["--rate is 'high'; allowed: a number"]),
        (("--rounds", "x"), ["--rounds is 'x'; allowed: a whole number or null"]),
        (("--strict", "x"), ["--strict is 'x'; allowed: true or false"]),
        (("--extra-options", "3"), ["--extra-options is '3'; allowed: a mapping such as {name: value}"]),
        (("--kind", "c"), ["--kind is 'c'; allowed: a, b"]),
        (("--batch-size",), ["--batch_size: expected one argument"]),
        (("--batchsize", "3"), ["unknown option '--batchsize'. Did you mean '--batch-size'? Known: --batch-size"]),
        (("--batch", "3"), ["unknown option '--batch'"]),
        (("--config", "nowhere.yaml"), ["config", "File does not exist", "nowhere.yaml"]),
    ],
)
def test_errors_are_one_line_that_names_option_and_allowed_values(words: tuple[str, ...], said: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(*words)
    assert all(part in str(caught.value) for part in said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "Problems parsing"), ("rte: 1", "does not accept option 'rte'"), ("rate: x", '"rate".*float.*x')],
)
def test_errors_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        read("--config", "c.yaml")
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


def test_options_of_the_method_are_written_behind_it() -> None:
    from pathex.cli.masks import PRUNE

    _, options = parse(
        ["prune", "--method", "px", "--method.redraw", "true", "--method.smooth=tangent"], {"prune": PRUNE}
    )
    assert options.method == "px" and options.method_options == {"redraw": True, "smooth": "tangent"}

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pathex.cli._arguments import parse
from pathex.errors import InvalidInput


@dataclass(frozen=True)
class Options:
    """Options.

    Attributes:
        names: Names, as in ``this``.
        batch_size: Images.
        rate: A rate.
        rounds: Rounds or null.
        strict: Whether.
        extra_options: More.
    """

    names: tuple[str, ...] = ()
    batch_size: int = 8
    rate: float = 0.5
    rounds: int | None = None
    strict: bool = False
    extra_options: dict[str, Any] = field(default_factory=dict)


def read(*words: str) -> Options:
    return parse("try", Options, words, "Tries.", positional=("names", 0))


def test_defaults() -> None:
    assert read() == Options()


@pytest.mark.parametrize("words", [("--batch-size", "4"), ("--batch_size", "4"), ("--batch-size=4",)])
def test_hyphens_underscores_and_equals_are_alike(words: tuple[str, ...]) -> None:
    assert read(*words).batch_size == 4


def test_dotted_overrides_are_typed_by_yaml() -> None:
    options = read("--extra-options.width", "8", "--extra_options.on", "true", "--extra_options.name=a-b")
    assert options.extra_options == {"width": 8, "on": True, "name": "a-b"}


@pytest.mark.parametrize("words", [("a", "b", "--rate", "1"), ("--rate", "1", "a", "b"), ("a", "--rate=1", "b")])
def test_free_words_stand_anywhere(words: tuple[str, ...]) -> None:
    assert (read(*words).names, read(*words).rate) == (("a", "b"), 1.0)


def test_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("batch_size: 2\nrate: 0.25\nextra_options: {width: 1}\n")
    options = read("--config", str(file), "--rate", "0.75", "--extra-options.depth", "3")
    assert (options.batch_size, options.rate, options.extra_options) == (2, 0.75, {"width": 1, "depth": 3})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-size", "x"), "--batch-size must be a whole number, got 'x'"),
        (("--rate", "x"), "--rate must be a number, got 'x'"),
        (("--rounds", "x"), "--rounds must be a whole number or null, got 'x'"),
        (("--strict", "x"), "--strict must be true or false, got 'x'"),
        (("--extra-options", "3"), "--extra-options must be a mapping such as {name: value}, got '3'"),
        (("--batch-size",), "--batch-size: expected one argument"),
        (("--batchsize", "3"), "unknown option '--batchsize'. Did you mean '--batch-size'? Known: --batch-size"),
        (("--batch", "3"), "unknown option '--batch'"),
        (("--config", "nowhere.yaml"), "--config: File does not exist"),
    ],
)
def test_errors_are_one_line_that_names_option_and_allowed_values(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(*words)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "--config c.yaml: Problems parsing"), ("rte: 1", "unknown option 'rte'"), ("rate: x", "--rate must be")],
)
def test_errors_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        read("--config", "c.yaml")


def test_free_words_are_refused_where_none_belong() -> None:
    with pytest.raises(InvalidInput, match="'stray' is not an option of pathex try"):
        parse("try", Options, ["stray"], "Tries.")
    with pytest.raises(InvalidInput, match="'b' is too much"):
        parse("try", Options, ["a", "b"], "Tries.", positional=("names", 1))


def test_help_is_readable_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: pathex try NAMES... [--option value ...]")
    assert "Names, as in this." in text and "``" not in text

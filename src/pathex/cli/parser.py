"""From words to a command and its options."""

import argparse
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser

from pathex import __version__
from pathex.errors import InvalidInput, UnknownName, check_name, refusing
from pathex.experiments.runs import allowed_values, check_types
from pathex.files import read


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        purpose: What it does, in one line.
        options: A frozen dataclass whose fields, defaults and attribute docs are the options.
        execute: Carries it out; returns the exit code, None for 0.
        description: What it does, in full; empty for ``purpose``.
        positional: The field that words without an option name belong to, how many (``?`` or ``*``), and its help.
        resumes: Whether the same command goes on after Ctrl-C.
        example: A command line, for the help.
        headings: Headings of the help, by the option that each stands before.
    """

    purpose: str
    options: type
    execute: Callable[[Any], int | None] = lambda _: None
    description: str = ""
    positional: tuple[str, str, str] | None = None
    resumes: bool = False
    example: str = ""
    headings: Mapping[str, str] = field(default_factory=dict)


class _Parser(ArgumentParser):
    command = Command("", object)

    def format_help(self) -> str:
        text = super().format_help().replace("``", "")  # docstrings are written for another place
        for option, heading in self.command.headings.items():
            text = text.replace(f"\n  --{option} ", f"\n\n{heading}:\n  --{option} ", 1)
        return f"{text}\nexample:\n  {self.command.example}\n" if self.command.example else text


def parse(words: Sequence[str], commands: Mapping[str, Command]) -> tuple[str, Any]:
    """Reads a command line; ``--help``, ``--version`` and ``--print_config`` end the process with 0."""
    if not words[0].startswith("-"):
        check_name("command", words[0], commands)
        words = [words[0], *(_underscored(word) for word in words[1:])]
        _check_names(words[1:], commands[words[0]].options)
        words = [words[0], *_completed(words[1:], get_type_hints(commands[words[0]].options))]
    _check_texts([word.partition("=")[2] or word for word in words])
    for before, word in itertools.pairwise((*words, "")):
        name, equals, file = word.partition("=")
        if before == "--config" or (name == "--config" and equals):
            read(Path(file if equals else word), f"--config: {word!r}", kind=".yaml")
    try:
        parsed = _parser(commands).parse_args(words).as_dict()
    except argparse.ArgumentError as error:
        if words[0] in commands:
            _check_values(words[1:], commands[words[0]].options)
        raise InvalidInput(" ".join(str(error).split())) from None
    name = parsed["subcommand"]
    values = {key: value for key, value in parsed[name].items() if key != "config"}
    _check_texts(values)
    options = commands[name].options(**values)
    check_types(options)  # the parser takes null for anything
    return name, options


def _check_texts(value: Any) -> None:
    """Refuse each text in a value that is no path of a file, whatever it is meant for."""
    if isinstance(value, Mapping | list | tuple):
        for part in [*value, *value.values()] if isinstance(value, Mapping) else value:
            _check_texts(part)
    for place in (value, value.partition(":")[2]) if isinstance(value, str) else ():
        if "\0" in place:
            raise InvalidInput(f"{value!r} holds NUL; allowed: text without it")
        with refusing(f"{value!r} ({{}})", RuntimeError):
            path = Path(place).expanduser()
        with suppress(OSError):  # no path
            if path.is_fifo() and path.parent != Path("/dev/fd"):
                raise InvalidInput(f"{value!r} is a pipe, from which nothing may ever come; allowed: a file")


def _underscored(word: str) -> str:
    """Names of options take hyphens or underscores alike; ``--method.NAME`` is an option of the method."""
    name, equals, value = word.partition("=")
    name = re.sub("^--method[.]", "--method_options.", name)
    name = re.sub("^--test[-_]fraction$", "--data_options.test_fraction", name)
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _completed(words: Sequence[str], hints: Mapping[str, Any]) -> Iterator[str]:
    """The words with ``true`` after the bare name of a switch, and brackets around lists."""
    for before, word, following in zip(["", *words], words, [*words[1:], "--"], strict=False):
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            yield _bracketed(hints.get(before[2:]), word)
        elif equals:
            yield f"{name}={_bracketed(hints.get(name[2:]), value)}"
        else:
            yield f"{name}=true" if hints.get(name[2:]) is bool and following.startswith("--") else word


def _bracketed(hint: Any, value: str) -> str:
    """A value as a list where the type is one: ``a,b`` is ``[a, b]``."""
    lists = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is tuple]
    if not lists or value.startswith("[") or (hint is not lists[0] and "," not in value):
        return value
    return json.dumps([part.strip() for part in value.split(",")]) if str in get_args(lists[0]) else f"[{value}]"


def _check_names(words: Sequence[str], options: type) -> None:
    known = {f"--{field.name}" for field in dataclasses.fields(options)} | {"--config", "--print_config", "--help"}
    for word in words:
        name = word.partition("=")[0].partition(".")[0]
        if name.startswith("--") and name not in known:
            raise UnknownName("option", name.replace("_", "-"), (each.replace("_", "-") for each in known))


def _check_values(words: Sequence[str], options: type) -> None:
    """Find the option that the parser refused: its own words about a union of types are many."""
    hints = get_type_hints(options, include_extras=True)
    for word, following in itertools.pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if (hint := hints.get(name[2:])) is None or not name.startswith("--") or (not equals and not following):
            continue
        single = ArgumentParser(exit_on_error=False)
        single.add_argument(name, type=hint)
        value = value if equals else following
        try:
            single.parse_args([f"{name}={value}"])
        except argparse.ArgumentError:
            share = re.fullmatch(r"(\d+([.]\d+)?)\s*%", value)
            more = f" (did you mean {float(share[1]) / 100:g}?)" if share else ""
            said = f"{name.replace('_', '-')} is {value!r}; allowed: {allowed_values(hint)}{more}"
            raise InvalidInput(said) from None


def writable(out: str) -> Path:
    """The file that ``--out`` names, in a folder that is there; `InvalidInput` for others."""
    path = Path(out)
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidInput(f"--out {out!r} must name a file in a folder that exists")
    return path


def _parser(commands: Mapping[str, Command]) -> ArgumentParser:
    parser = _Parser(
        prog="pathex",
        description="Find lottery tickets in vision models before training. Start with: pathex demo",
        exit_on_error=False,
    )
    parser.add_argument("--version", action="version", version=f"pathex {__version__}")
    added = parser.add_subcommands(required=False)
    for name, command in commands.items():
        free, count, text = command.positional or ("", "", "")
        place = f" [{free.upper()}]" if free else ""
        sub = _Parser(
            usage=f"pathex {name}{place} [--option value ...]",
            description=command.description or command.purpose,
            epilog="Names of options take hyphens or underscores alike; values are read as YAML. Options of a method "
            "are --method.NAME: pathex methods METHOD tells them. --trust-code imports code that a file names.",
            exit_on_error=False,
        )
        sub.command = command
        sub.add_argument("--config", action=ActionConfigFile, metavar="FILE", help="YAML file of options.")
        if free:
            # Without a default, which would take the place of what a configuration file says.
            sub.add_argument(free, nargs=count, type=str, default=argparse.SUPPRESS, help=text)
        sub.add_class_arguments(command.options, None, as_group=False, skip={free} - {""})
        added.add_subcommand(name, sub, help=command.purpose)
    return parser

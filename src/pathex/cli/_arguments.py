"""From words to a frozen dataclass of options; what jsonargparse reports becomes one line."""

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser

from pathex.errors import InvalidInput, UnknownName

__all__ = ["parse", "separated"]

Options = TypeVar("Options")

_UNKNOWN_WORD = re.compile(r"unrecognized arguments: (\S+)")
_UNKNOWN_KEY = re.compile(r"Option '([^']+)' is not accepted")
_BAD_VALUE = re.compile(r'Parser key "([^"]+)":\s*(.*)', re.DOTALL)
_GIVEN = re.compile(r"(?:Got|Given) value: (.*)", re.DOTALL)
_TYPE = re.compile(r"Expected a <class '(\w+)'>")
_WORDS = {
    "NoneType": "null",
    "bool": "true or false",
    "dict": "a mapping such as {name: value}",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "str": "text",
    "tuple": "a list",
}


class _Parser(ArgumentParser):
    """A parser whose help reads well on a terminal, where docstrings are written for another place."""

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if action.help:  # before lines are broken
                action.help = action.help.replace("``", "")
        return added


def parse(
    command: str, kind: type[Options], words: Sequence[str], description: str, positional: tuple[str, int] | None = None
) -> Options:
    """Reads the options of one command; ``--help`` and ``--print_config`` end the process with 0.

    Args:
        command: Name of the command.
        kind: A dataclass whose fields, defaults and attribute docs are the options.
        words: What follows the command.
        description: What the command does, for its help.
        positional: The field that words without an option name belong to, and how many it takes (1, or 0 for any
            number); None allows no such words.

    Returns:
        The options.

    Raises:
        InvalidInput: If a word, a value or a configuration file cannot be used, in one line.
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    parser = _parser(command, kind, description, positional)
    named, free = separated(words)
    if free:
        named += _as_option(free, positional, command)
    try:
        values = parser.parse_args(named).as_dict()
    except argparse.ArgumentError as error:
        raise InvalidInput(_reduced(str(error), named, names)) from None
    return kind(**{name: values[name] for name in names})


def _parser(command: str, kind: type, description: str, positional: tuple[str, int] | None) -> ArgumentParser:
    place = ""
    if positional is not None:
        place = f" {positional[0].upper()}..." if positional[1] == 0 else f" [{positional[0].upper()}]"
    parser = _Parser(
        prog=f"pathex {command}",
        usage=f"pathex {command}{place} [--option value ...]",
        description=description,
        epilog="Names of options take hyphens or underscores alike; values are read as YAML.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, metavar="FILE", help="YAML file of options.")
    parser.add_class_arguments(kind, None, as_group=False)
    return parser


def separated(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tells options with their values from free words, every option but help and print_config taking one value.

    Args:
        words: The words of a command.

    Returns:
        Option names (with underscores) and values; free words.
    """
    named: list[str] = []
    free: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "-h":
            named.append(word)
        elif not word.startswith("--"):
            free.append(word)
        else:
            name, equals, value = word[2:].partition("=")
            option = "--" + name.replace("-", "_")
            named.append(option)
            if option == "--print_config":
                named[-1] += equals + value
            elif option != "--help":
                named += [value] if equals else islice(rest, 1)
    return named, free


def _as_option(free: Sequence[str], positional: tuple[str, int] | None, command: str) -> list[str]:
    if positional is None:
        raise InvalidInput(f"{free[0]!r} is not an option of pathex {command}; options are written --name value")
    name, most = positional
    if 0 < most < len(free):
        raise InvalidInput(f"{free[most]!r} is too much: pathex {command} takes one {name}")
    return [f"--{name}", free[0] if most == 1 else json.dumps(free)]


def _reduced(message: str, named: Sequence[str], names: Sequence[str]) -> str:
    unknown = _UNKNOWN_WORD.search(message)
    if unknown:
        return str(UnknownName("option", unknown[1].split("=")[0], [f"--{_hyphened(name)}" for name in names]))
    unknown = _UNKNOWN_KEY.search(message)
    if unknown:
        return str(UnknownName("option", unknown[1], names))
    bad = _BAD_VALUE.search(message)
    if not bad:
        file = "--config " + named[named.index("--config") + 1] + ": " if "parsing config" in message else ""
        return file + " ".join(re.sub(r"argument --(\w+)", _named, message).split())
    option, reason = f"--{_hyphened(bad[1])}", bad[2]
    given, types = _GIVEN.search(reason), list(dict.fromkeys(_TYPE.findall(reason)))
    if given and types:
        allowed = " or ".join(_WORDS.get(name, name) for name in types)
        return f"{option} must be {allowed}, got {given[1].strip()!r}"
    return f"{option}: {' '.join(reason.split())}"


def _named(match: re.Match[str]) -> str:
    return f"--{_hyphened(match[1])}"


def _hyphened(name: str) -> str:
    return name.replace("_", "-")

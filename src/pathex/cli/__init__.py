"""The command line. What each command does lies in the libraries; here are words, tables and exit codes."""

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from types import MappingProxyType
from typing import TextIO

from pathex.errors import PathexError, UnknownName

__all__ = ["main"]

_COMMANDS = MappingProxyType(
    {
        "demo": "dense, random, magnitude, synflow and px on the embedded images, then a report",
        "run": "prune, train and evaluate one network",
        "sweep": "many runs from one file, here or on a cluster, and one table of their results",
        "prune": "write the mask of one network",
        "convert": "a mask file in another form",
        "report": "tables, figures and one page from finished runs",
        "bench": "will measure your own network in a later release",
        "methods": "list the pruning methods, or show the card of one",
        "models": "list the networks",
        "datasets": "list the data sets",
    }
)
_STOPPED = dict.fromkeys(
    ("demo", "run", "sweep"), "; what is finished is saved, and the same command goes on from there"
)
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after ``pathex``; None takes them from the process.

    Returns:
        0 when done, 1 when a run of a sweep failed, 2 on bad arguments or input, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _dispatch(words)
        except PathexError as error:
            print(f"pathex: error: {_one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            how = _STOPPED.get(words[0], "")
            print(f"pathex: stopped{how}", file=sys.stderr)
            return _INTERRUPTED
        except SystemExit as stop:  # how help and --print_config end
            return stop.code if isinstance(stop.code, int) else 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help"}:
        print(_help(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"pathex {version('pathex')}")
        return 0
    if words[0] not in _COMMANDS:
        raise UnknownName("command", words[0], _COMMANDS)
    importlib.import_module(f"pathex.cli._{words[0]}").execute(words[1:])
    return 0


def _help() -> str:
    parser = argparse.ArgumentParser(
        prog="pathex",
        usage="pathex COMMAND [options]",
        description="Find lottery tickets in vision models before training.",
        epilog="pathex COMMAND --help shows the options of a command. Start with: pathex demo",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=14),
        add_help=False,
    )
    commands = parser.add_argument_group("commands")
    for name, purpose in _COMMANDS.items():
        commands.add_argument(name, help=purpose, nargs="?")
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="store_true", help="show this text")
    options.add_argument("--version", action="store_true", help="show the version")
    return parser.format_help()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"pathex: warning: {_one_line(message)}", file=file or sys.stderr)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())

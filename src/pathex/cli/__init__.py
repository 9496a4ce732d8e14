"""The command line. What each command does lies in the libraries; here are words, tables and exit codes."""

import sys
import warnings
from collections.abc import Sequence
from types import MappingProxyType

from pathex.cli import experiments, listings, masks, networks
from pathex.cli.parser import parse
from pathex.errors import PathexError

__all__ = ["COMMANDS", "main"]

COMMANDS = MappingProxyType(
    {
        "demo": experiments.DEMO,
        "run": experiments.RUN,
        "sweep": experiments.SWEEP,
        "prune": masks.PRUNE,
        "convert": masks.CONVERT,
        "report": experiments.REPORT,
        "bench": networks.BENCH,
        "export": networks.EXPORT,
        "methods": listings.METHODS,
        "models": listings.MODELS,
        "datasets": listings.DATASETS,
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command: 0 when done, 1 when a run of a sweep failed, 2 on bad input, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            name, options = parse(words or ["--help"], COMMANDS)
            return COMMANDS[name].execute(options) or 0
        except PathexError as error:
            print(f"pathex: error: {_one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            more = "; what is finished is saved, and the same command goes on from there"
            print(f"pathex: stopped{more if COMMANDS[words[0]].resumes else ''}", file=sys.stderr)
            return 130
        except SystemExit as stop:  # how help and --print_config end
            return int(stop.code or 0) if words else 2


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"pathex: warning: {_one_line(message)}", file=sys.stderr)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())

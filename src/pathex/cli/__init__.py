"""The command line. What each command does lies in the libraries; here are words, tables and exit codes."""

import contextlib
import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextvars import copy_context
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from pathex.cli import experiments, kernels, listings, masks, networks
from pathex.cli.parser import parse
from pathex.errors import TRUSTED, PathexError, reason

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
        "ntk": kernels.NTK,
        "methods": listings.METHODS,
        "models": listings.MODELS,
        "datasets": listings.DATASETS,
    }
)
_BROKEN_PIPE = 141  # what a shell tells of a program that SIGPIPE ended
_LONGEST = 300  # characters of a word, which may be what a stranger's file holds
_TRUST = ("--trust-code", "--trust_code")
_UNNAMED = MappingProxyType(
    {errno.ENOENT: "the working directory"} | dict.fromkeys((errno.ENOSPC, errno.EIO, errno.EBADF), "standard output")
)
_OF_THE_SYSTEM = ("allocate memory", "out of memory", "null byte", "null character")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command: 0 when done, 1 when a run of a sweep failed, 2 on bad input, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    # One that was closed is None.
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            Path.cwd()  # without a working folder, MKL ends the process
            code = copy_context().run(_execute, words)
            sys.stdout.flush()  # here, as the interpreter fails with many lines
        except KeyboardInterrupt:
            resumes = any(name in words[:1] for name, command in COMMANDS.items() if command.resumes)
            more = "; what is finished is saved, and the same command goes on from there"
            _say(f"stopped{more if resumes else ''}")
            return 130
        except Exception as error:
            _drop_output(sys.stdout)
            if isinstance(error, BrokenPipeError):  # who reads has read enough, as in `| head`
                return _BROKEN_PIPE
            if (line := _refusal(error)) is None:
                raise
            _say(f"error: {line}")
            return 2
        finally:
            _drop_output(sys.stderr)
    return code


def _execute(words: Sequence[str]) -> int:
    given = [word for word in words if word not in _TRUST]
    own = _own_words(given)

    def trusted(name: str) -> bool:
        if found := given != words or name in own:
            sys.path.extend({str(Path.cwd())}.difference(sys.path))  # behind what is installed, which nothing replaces
        return found

    TRUSTED.set(trusted)
    try:
        name, options = parse(given or ["--help"], COMMANDS)
        return COMMANDS[name].execute(options) or 0
    except SystemExit as stop:  # how help and --print_config end
        return int(stop.code or 0) if given else 2


def _own_words(words: Sequence[str]) -> set[str]:
    """The texts on a command line, those in lists and mappings too, but for the names of files of settings."""
    files = ("--config", "--base")
    typed = [word for before, word in pairwise(["", *words]) if before not in files and word.split("=")[0] not in files]
    return {piece for word in typed for piece in re.split(r"[\s\[\]{},'\"=]+", word)}


def _drop_output(stream: TextIO) -> None:
    """Drop what a stream does not take, as the interpreter would try again."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream.fileno())


def _refusal(error: Exception) -> str | None:
    """What pathex refuses or the system cannot do; None for a defect."""
    if isinstance(error, PathexError):
        return str(error)
    if isinstance(error, OSError):
        place = error.filename or _UNNAMED.get(error.errno or 0, type(error).__name__)
        return f"{str(place)[:200]}: {reason(error)}"
    known = isinstance(error, MemoryError | RecursionError | UnicodeError)
    return reason(error) if known or any(words in str(error) for words in _OF_THE_SYSTEM) else None


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _say(f"warning: {message}")


def _say(message: str) -> None:
    words = (word if len(word) <= _LONGEST else f"{word[:_LONGEST]}..." for word in message.split())
    with contextlib.suppress(OSError):  # nothing is left to say it on
        print(f"pathex: {' '.join(words)}", file=sys.stderr)

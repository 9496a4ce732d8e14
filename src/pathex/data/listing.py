"""The files below a folder, and what tells that they changed."""

import hashlib
import os
from pathlib import Path

from pathex.errors import InvalidInput, reason

_OF_SYSTEMS = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_SMALL = 64 * 2**20
"""Size in bytes below which a file is known by its content."""


def is_hidden(name: str) -> bool:
    """Whether systems and tools keep a file or folder of this name for themselves."""
    return name.startswith(".") or name in _OF_SYSTEMS


def files_below(folder: str | Path, seen: set[str] | None = None) -> list[str]:
    """The files below a folder that are not hidden, in order; of the real folders that links lead to, each once."""
    seen = set() if seen is None else seen
    real = os.path.realpath(folder)
    seen.update({real, *map(str, Path(real).parents)})
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        unseen = {os.path.realpath(f"{place}{os.sep}{name}"): name for name in folders if not is_hidden(name)}
        folders[:] = [name for real, name in unseen.items() if real not in seen]
        seen.update(unseen)
        found.append((place, sorted(name for name in names if not is_hidden(name))))
    return [f"{place}{os.sep}{name}" for place, names in sorted(found) for name in names]


def below(name: str, *folders: str | Path) -> str:
    """The file that a list or table of a data set names, in one of its folders, from which links may lead out."""
    for folder in folders:
        if ".." not in Path(name).parts and (path := Path(folder, name)).is_relative_to(folder):
            return str(path)
    raise InvalidInput(f"{name!r} is named, which is not below {str(folders[0])!r}")


def _refuse(error: OSError) -> None:
    raise InvalidInput(f"folder {error.filename!r} cannot be read ({reason(error)})") from error


def fingerprint(path: str | Path) -> str:
    """What changes with a file (its content; of a large one size and time) or a folder (names, sizes and times)."""
    path = Path(path)
    if path.is_file() and path.stat().st_size < _SMALL:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in [str(path)] if path.is_file() else files_below(path):
        about = Path(file).stat(follow_symlinks=Path(file).exists())  # a link may lead nowhere
        digest.update(f"{os.path.relpath(file, path)} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()

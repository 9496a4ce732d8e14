"""A digest inside a file, which tells that a byte of it changed."""

import hashlib
from collections.abc import Iterable, Mapping
from mmap import mmap
from pathlib import Path

from pathex.errors import InvalidInput

MARK = b"pathex-sha256:"
SEAL = MARK.decode() + "0" * 64
"""What `seal` replaces."""


def seal(data: bytes) -> bytes:
    """The bytes of a file with the digest of all of it, its `SEAL` included, in place of the `SEAL`."""
    return data.replace(SEAL.encode(), MARK + hashlib.sha256(data).hexdigest().encode(), 1)


def check_seal(data: bytes | mmap) -> None:
    """`InvalidInput` for a file that is not as it was sealed; those of earlier versions have no seal."""
    if (found := data.rfind(MARK)) >= 0:
        at = found + len(MARK)
        with memoryview(data) as view:
            digest = hashlib.sha256(view[:at])
            digest.update(b"0" * 64)
            digest.update(view[at + 64 :])
        if digest.hexdigest().encode() != data[at : at + 64]:
            raise InvalidInput("it changed since it was written: its digest is another")


def digest(path: Path, more: bytes = b"") -> str:
    """The SHA-256 of a file with more bytes behind it."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    found.update(more)
    return found.hexdigest()


def changed(folder: Path, digests: Mapping[str, str], names: Iterable[str] | None = None) -> list[str]:
    """What became of the files of a folder since their digests were taken, or of those named: a text for each."""
    if not isinstance(digests, Mapping):
        raise InvalidInput(f"{folder} has digests that are no names with values: {digests!r:.50}")
    chosen = sorted(digests.keys() if names is None else digests.keys() & names)
    lost = [f"{name} is missing" for name in chosen if not (folder / name).is_file()]
    there = [name for name in chosen if (folder / name).is_file()]
    return lost + [f"{name} changed since it was written" for name in there if digest(folder / name) != digests[name]]

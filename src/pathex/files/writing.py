"""Files that are never half-written, and are there after a power cut."""

import contextlib
import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pathex.errors import naming
from pathex.files.seals import MARK, SEAL, digest, seal

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step: the block gets a temporary file, which takes the place of ``path`` if all goes well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if _is_gone(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # of file systems that know no such thing
            os.fsync(folder)
        os.close(folder)


def _is_gone(process: str) -> bool:
    if os.name == "posix" and process.isdecimal():
        try:
            os.kill(int(process), 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
    return False


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, its digest as the key ``sha256``."""
    write_bytes(path, seal((json.dumps({**value, "sha256": SEAL}, indent=2) + "\n").encode()))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file in one step."""
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_safetensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in one step, its digest where `SEAL` stands in the metadata."""
    from safetensors.torch import save

    # One entry of metadata: the library writes several in any order.
    write_bytes(path, seal(save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata))))


def write_torch(path: Path, state: Mapping[str, Any]) -> None:
    """Write a file of ``torch.save`` in one step, its digest behind it, where nothing else looks."""
    import torch

    with replacing(path) as temporary:
        torch.save(state, temporary)
        with appending(temporary) as file:
            file.write(MARK + digest(temporary, SEAL.encode()).encode())


def appending(path: Path) -> IO[bytes]:
    """A file to write at its end, without the promises of the others."""
    return path.open("ab")

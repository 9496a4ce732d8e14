"""Files that are never half-written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file in one step: the block writes a temporary file, which then takes the place of ``path``.

    Args:
        path: The file to write.

    Yields:
        The temporary file, in the same folder; an error removes it and leaves ``path`` as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

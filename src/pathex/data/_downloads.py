"""Where downloads go."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["home", "leaving_no_folder"]


def home(root: str | Path | None) -> Path:
    """The folder of downloads.

    Args:
        root: The folder; None is the environment variable ``PATHEX_ROOT``, else ``~/.cache/pathex``.

    Returns:
        Its path.
    """
    return Path(root or os.environ.get("PATHEX_ROOT") or Path.home() / ".cache" / "pathex").expanduser()


@contextmanager
def leaving_no_folder(base: Path) -> Iterator[None]:
    """Take away the folders made for a download that failed, so that a mistyped name leaves nothing behind.

    Args:
        base: The folder of the download. What was there before, and what holds anything, stays.

    Yields:
        Nothing.
    """
    missing = [folder for folder in (base, *base.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        # Innermost first; one that holds anything ends it.
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise

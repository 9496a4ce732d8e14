"""Where downloads go."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pathex.errors import InvalidInput, reason


def home(root: str | Path | None) -> Path:
    """The folder of downloads: ``root``, else the environment variable ``PATHEX_ROOT``, else ``~/.cache/pathex``."""
    return Path(root or os.environ.get("PATHEX_ROOT") or Path.home() / ".cache" / "pathex").expanduser()


@contextmanager
def downloading(name: str, base: Path, remedy: str) -> Iterator[None]:
    """A download of data set ``name`` into a folder; one that fails leaves no empty folder and says the remedy."""
    missing = [folder for folder in (base, *base.parents) if not folder.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"data {name!r} cannot be downloaded ({reason(error)}); {remedy}") from error
    finally:
        # Innermost first; one that holds anything ends it.
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()

"""The files of a run: written in one step, under a lock, with a log."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from pathex.errors import FolderInUse, naming, refusing
from pathex.experiments.runs.config import RunConfig
from pathex.experiments.runs.conformity import check_types
from pathex.files import SEAL, appending, changed, digest, read, seal, write_bytes
from pathex.train import Events

if TYPE_CHECKING:
    import pandas as pd

ADVICE = "; delete its folder to run again, or choose another 'out'"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_PACKAGES = ("pathex", "torch", "torchvision", "timm", "lightning-fabric", "torchmetrics", "numpy", "numba")
_ENDINGS = (".json", ".jsonl", ".yaml", ".ckpt", ".safetensors")


def to_csv(frame: "pd.DataFrame") -> str:
    """A table as text, without formulas: an apostrophe stands before texts that a spreadsheet would compute."""
    texts = frame.select_dtypes(exclude=["number", "bool"])
    quoted = {name: [f"'{x}" if str(x).startswith(_FORMULA) else x for x in texts[name]] for name in texts}
    return str(frame.assign(**quoted).to_csv(index=False))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of the run."""
    content: dict[str, Any] = read(path, str(path), ADVICE, holds=dict)
    return content


def write_config(folder: Path, config: RunConfig) -> None:
    """Write ``config.yaml``, which reproduces the run when it is given as ``--config``."""
    values = {**vars(config), "milestones": list(config.milestones)}
    del values["fresh"]  # it was meant once
    # The digest comes first: a file that is cut still has it.
    write_bytes(folder / "config.yaml", seal(f"# {SEAL}\n{yaml.safe_dump(values, sort_keys=False)}".encode()))


def read_config(folder: Path) -> RunConfig:
    """The settings of the run in a folder."""
    path = folder / "config.yaml"
    left = read(path, str(path), ADVICE, holds=dict)
    with refusing(f"{path} cannot be read ({{}}){ADVICE}"):
        left.pop("capture", None)  # a setting of earlier versions, which decided no numbers
        config = RunConfig(**left)
        check_types(config)
        return config


def finished_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run that is done."""
    path = folder / "result.json"
    if not path.exists():
        return None
    result = read_json(path)
    result.pop("files", None)
    return result if result.get("status") == "done" else None


def damage(folder: Path) -> list[str]:
    """What became of the files of a finished run since."""
    path = folder / "result.json"
    return changed(folder, read_json(path).get("files", {})) if path.exists() else []


def digests(folder: Path) -> dict[str, str]:
    """The digest of each file that belongs to the run, but for its result, the log, and what loggers wrote."""
    found = [*folder.glob("*"), *folder.glob("levels/**/*"), *folder.glob("tasks/**/*")]
    own = [path for path in found if path.suffix in _ENDINGS and path.name not in {"result.json", "failed.json"}]
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(own)}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; the lock ends with the process, however that ends."""
    from filelock import FileLock, Timeout

    try:
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise FolderInUse(f"{folder} is in use by another process; wait for it, or choose another 'out'") from None
    with held:
        yield


class Journal:
    """Writes each event of a run to ``log.txt`` and passes it on."""

    def __init__(self, folder: Path | None, on_event: Events | None) -> None:
        self._path, self._on_event = None if folder is None else folder / "log.txt", on_event

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            with suppress(OSError):  # a full disk may be why
                self.note(f"stopped by {kind.__name__}: {error}")

    def note(self, message: str) -> None:
        """Log a line."""
        if self._path is not None:
            with naming(self._path), appending(self._path) as log:
                log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}\n".encode())

    def __call__(self, kind: str, payload: dict[str, Any]) -> None:
        """Log an event and pass it on."""
        if kind != "step":  # too many for the log
            self.note(f"{kind} {json.dumps(payload, default=str)}")
        if self._on_event is not None:
            self._on_event(kind, payload)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, without anything that names the machine or its user."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""The files of a run: written in one step, under a lock, with a log."""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from pathex.errors import FolderInUse, naming, refusing
from pathex.experiments.runs.config import RunConfig
from pathex.masks import replacing
from pathex.train import Events

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_PACKAGES = ("pathex", "torch", "torchvision", "timm", "lightning-fabric", "torchmetrics", "numpy")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file in one step."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def to_csv(frame: "pd.DataFrame") -> str:
    """A table as text, without formulas: an apostrophe stands before texts that a spreadsheet would compute."""
    texts = frame.select_dtypes(exclude=["number", "bool"])
    quoted = {name: [f"'{x}" if str(x).startswith(_FORMULA) else x for x in texts[name]] for name in texts}
    return str(frame.assign(**quoted).to_csv(index=False))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of the run."""
    with refusing(f"{path} cannot be read ({{}}); delete its folder to run again", OSError, ValueError):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_config(folder: Path, config: RunConfig) -> None:
    """Write ``config.yaml``, which reproduces the run when it is given as ``--config``."""
    values = {**vars(config), "milestones": list(config.milestones)}
    del values["fresh"]  # it was meant once
    with replacing(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def read_config(folder: Path) -> RunConfig:
    """The settings of the run in a folder."""
    path = folder / "config.yaml"
    unreadable = (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError)
    with refusing(f"{path} cannot be read ({{}}); delete its folder or choose another 'out'", *unreadable):
        left = yaml.safe_load(path.read_text(encoding="utf-8"))
        left.pop("capture", None)  # a setting of earlier versions, which decided no numbers
        return RunConfig(**left)


def finished_result(folder: Path) -> dict[str, Any] | None:
    """The result of a run that is done."""
    path = folder / "result.json"
    if not path.exists():
        return None
    result = read_json(path)
    return result if result.get("status") == "done" else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; the lock ends with the process, however that ends."""
    from filelock import FileLock, Timeout

    try:
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise FolderInUse(f"{folder} is in use by another process; wait for it, or choose another 'out'") from None
    with held:
        for left in folder.rglob(".*.tmp"):  # of a process that was killed
            left.unlink()
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
            with naming(self._path), self._path.open("a", encoding="utf-8") as log:
                log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {message}\n")

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

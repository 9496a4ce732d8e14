"""Loggers that other programs show."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pathex.errors import InvalidInput, check_name

LOGGERS = ("none", "tensorboard", "wandb", "mlflow")
_PROJECT = "pathex"


def check_logger(name: str) -> None:
    """Refuse a logger that is not one of `LOGGERS`, or not installed."""
    from importlib.util import find_spec

    check_name("logger", name, LOGGERS)
    needed = {"none": [], "tensorboard": [name]}.get(name, [name, "pytorch_lightning"])
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise InvalidInput(f"logger {name!r} needs {missing[0]}: pip install 'pathex[tracking]'")
    if name == "wandb" and os.environ.get("WANDB_MODE") not in {"offline", "disabled"} and not _has_key():
        raise InvalidInput("logger 'wandb' finds no key; allowed: WANDB_API_KEY, wandb login, or WANDB_MODE=offline")


def _has_key() -> bool:
    """Whether Weights & Biases would not ask for a key."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with suppress(OSError, NetrcParseError):
        return bool(os.environ.get("WANDB_API_KEY") or netrc(os.environ.get("NETRC")).authenticators(host))
    return False


def _loggers(name: str, folder: Path) -> list[Any]:
    """The logger of a run; a run that is taken up again goes on with the same curves."""
    if name == "none":
        return []
    if name == "tensorboard":
        from lightning_fabric.loggers import TensorBoardLogger

        return [TensorBoardLogger(root_dir=folder, name="tensorboard", version="")]
    from pytorch_lightning import loggers as outside

    if name == "wandb":
        return [outside.WandbLogger(name=folder.name, id=folder.name[-128:], project=_PROJECT, save_dir=folder)]
    place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').absolute()}"
    files = None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "mlflow").absolute().as_uri()
    known = _known_run(place, folder.name)
    return [outside.MLFlowLogger(_PROJECT, folder.name, place, run_id=known, artifact_location=files)]


def _known_run(place: str, name: str) -> str | None:
    """The number that MLflow gave to a run of this name."""
    from mlflow.tracking import MlflowClient  # type: ignore[import-not-found, unused-ignore]

    client = MlflowClient(place)
    experiment = client.get_experiment_by_name(_PROJECT)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


@contextmanager
def tracked(fabric: Any, name: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Log what happens in a block through ``fabric``, from the first process, and its settings when the run begins."""
    made = _loggers(name, folder) if fabric.is_global_zero else []
    fabric.loggers.extend(made)
    failed = True
    try:
        if not (folder / "last.ckpt").exists():
            for logger in made:
                logger.log_hyperparams(dict(settings))
        yield
        failed = False
    finally:
        for logger in made:
            fabric.loggers.remove(logger)
            logger.finalize("failed" if failed else "success")
            if name == "wandb":  # the logger itself leaves its run open, and the next one would write into it
                logger.experiment.finish(exit_code=int(failed))

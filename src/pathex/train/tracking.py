"""Loggers that other programs show."""

from pathlib import Path
from typing import Any

from pathex.errors import InvalidInput, UnknownName

__all__ = ["LOGGERS", "check_logger", "loggers"]

LOGGERS = ("none", "tensorboard", "wandb", "mlflow")
_NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def check_logger(name: str) -> None:
    """Refuse a logger that is unknown or not installed.

    Args:
        name: One of :data:`LOGGERS`.

    Raises:
        UnknownName: If there is no such logger.
        InvalidInput: If a package that it needs is missing.
    """
    from importlib.util import find_spec

    if name not in LOGGERS:
        raise UnknownName("logger", name, LOGGERS)
    if name == "none":
        return
    needed = [_NEEDS[name]] if name == "tensorboard" else [_NEEDS[name], "pytorch_lightning"]
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise InvalidInput(f"logger {name!r} needs {missing[0]}: pip install 'pathex[tracking]'")


def loggers(name: str, folder: Path) -> list[Any]:
    """The logger of a run.

    Args:
        name: One of :data:`LOGGERS`.
        folder: Folder of the run; what the logger writes on this machine lies below it.

    Returns:
        Loggers for Fabric: one, or none.
    """
    check_logger(name)
    if name == "none":
        return []
    if name == "tensorboard":
        from lightning_fabric.loggers import TensorBoardLogger

        return [TensorBoardLogger(root_dir=folder, name="tensorboard", version="")]
    from pytorch_lightning import loggers as outside

    if name == "wandb":
        return [outside.WandbLogger(name=folder.name, project="pathex", save_dir=folder)]
    return [outside.MLFlowLogger(experiment_name="pathex", run_name=folder.name, save_dir=str(folder / "mlruns"))]

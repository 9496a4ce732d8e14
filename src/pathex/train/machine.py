"""The device and the precision that a network is trained with."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from pathex.errors import InvalidInput, UnknownName

__all__ = ["DEVICES", "PRECISIONS", "STRATEGIES", "check_machine", "fabric", "is_first_process"]

DEVICES = ("auto", "cpu", "cuda")
STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed")


def check_machine(device: str, precision: str = "32-true", *, devices: int = 1, strategy: str = "auto") -> str:
    """Choose the accelerator, and refuse what this machine cannot do.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: One of ``PRECISIONS``.
        devices: Devices, or processes on the CPU; 0 is as many as ``torchrun`` started.
        strategy: One of ``STRATEGIES``.

    Returns:
        ``cpu`` or ``cuda``.

    Raises:
        InvalidInput: If a name is unknown, there are not so many CUDA devices, or a setting needs one.
    """
    _check_name("device", device, DEVICES)
    _check_name("precision", precision, PRECISIONS)
    _check_name("strategy", strategy, STRATEGIES)
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda': PyTorch finds no CUDA device here. Allowed here: auto, cpu")
    accelerator = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if precision == "16-mixed" and accelerator == "cpu":
        allowed = ", ".join(name for name in PRECISIONS if name != "16-mixed")
        raise InvalidInput(f"precision '16-mixed' needs a CUDA device. Allowed on the CPU: {allowed}")
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise InvalidInput(f"devices is {devices}; CUDA devices here: {torch.cuda.device_count()}")
    if strategy == "fsdp" and accelerator == "cpu":
        raise InvalidInput("strategy 'fsdp' needs CUDA devices. Allowed on the CPU: auto, ddp")
    return accelerator


def fabric(
    device: str = "auto",
    precision: str = "32-true",
    *,
    devices: int = 1,
    strategy: str = "auto",
    loggers: Sequence[Any] = (),
) -> Any:
    """A Lightning Fabric, with its processes started.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: One of ``PRECISIONS``.
        devices: Devices, or processes on the CPU; 0 is as many as ``torchrun`` started. Where ``torchrun`` or
            ``fabric run`` started none, this call starts the command that is running anew for each further device.
        strategy: One of ``STRATEGIES``.
        loggers: Loggers of Fabric.

    Returns:
        The ``lightning_fabric.Fabric``; ``.device`` is the device that this process uses.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    accelerator = check_machine(device, precision, devices=devices, strategy=strategy)
    started = TorchElasticEnvironment.detect()
    # The environment is named, or Fabric would read a cluster's variables and expect a process for each of its tasks.
    environment = TorchElasticEnvironment() if started and devices != 1 else LightningEnvironment()
    wanted = devices or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    made = Fabric(
        accelerator=accelerator,
        devices=wanted,
        num_nodes=max(1, int(os.environ.get("WORLD_SIZE", "1")) // wanted) if started and devices != 1 else 1,
        strategy=strategy if wanted > 1 else "auto",
        precision=precision,
        loggers=list(loggers),
        plugins=[environment],
    )
    if wanted > 1:
        made.launch()
    return made


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints, of those that work on one run.

    Returns:
        True where ``torchrun``, ``fabric run`` or :func:`fabric` started no others.
    """
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _check_name(kind: str, name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        raise UnknownName(kind, name, allowed)

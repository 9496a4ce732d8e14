"""Devices, precision and threads that a network is trained with, and weights spread over processes (FSDP 2)."""

import os
from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from timeit import timeit
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from pathex.distributed import cores, in_one_piece, is_sharded
from pathex.errors import InvalidInput, check_name

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed")
_NO_SCALING = ", ".join(PRECISIONS[:-1])

_LEAST = 2**20
"""Parameters of a unit; fewer are not worth a message of their own."""


def check_machine(
    device: str, precision: str = "32-true", *, devices: int = 1, strategy: str = "auto", sync_batchnorm: bool = False
) -> str:
    """``cpu`` or ``cuda``; refuses what this machine cannot do. ``devices=0`` is as many as ``torchrun`` started."""
    check_name("device", device, ("auto", "cpu", "cuda"))
    check_name("precision", precision, PRECISIONS)
    check_name("strategy", strategy, ("auto", "ddp", "fsdp"))
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda': PyTorch finds no CUDA device here. Allowed here: auto, cpu")
    accelerator = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if precision == "16-mixed" and accelerator == "cpu":
        raise InvalidInput(f"precision '16-mixed' needs a CUDA device. Allowed on the CPU: {_NO_SCALING}")
    most, what = (torch.cuda.device_count(), "CUDA devices") if accelerator == "cuda" else (cores(), "processors")
    if devices > most:
        raise InvalidInput(f"devices is {devices}; {what} here: {most}")
    if strategy == "fsdp" and precision == "16-mixed":
        # Its scaling looks for overflow in the weights of one process alone.
        raise InvalidInput(f"precision '16-mixed' with strategy 'fsdp'; allowed: {_NO_SCALING}")
    if sync_batchnorm and accelerator == "cpu":
        raise InvalidInput("sync_batchnorm is True on the CPU, which has none; allowed: False")
    return accelerator


def pace(free: bool) -> tuple[int, float]:
    """The number of threads that steps of training take least time with at the moment, and their seconds for one."""
    most = torch.get_num_threads()
    numbers = sorted({min(2**power, most) for power in range(most.bit_length() + 1)}) if free else [most]
    x = torch.ones(64, 16, 28, 28).to(memory_format=torch.channels_last)
    v, w = (torch.ones(16, 16, 3, 3, requires_grad=True) for _ in range(2))

    def seconds(number: int) -> float:
        torch.set_num_threads(number)
        return timeit(lambda: torch.autograd.grad(conv2d(conv2d(x, v).relu(), w).sum(), (v, w)), number=5) / 5

    # The first turn of each also makes its threads and kernels.
    turns = [[seconds(number) for number in numbers] for _ in range(7)][1:]
    torch.set_num_threads(most)
    return min(zip(numbers, map(fmean, zip(*turns, strict=True)), strict=True), key=lambda found: found[1])


def fabric(device: str = "auto", precision: str = "32-true", *, devices: int = 1, strategy: str = "auto") -> Any:
    """A Lightning Fabric with its processes; without torchrun ``pathex.distributed.launched`` is around the call."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import DoublePrecision
    from lightning_fabric.plugins.environments import TorchElasticEnvironment
    from lightning_fabric.strategies import ModelParallelStrategy

    accelerator = check_machine(device, precision, devices=devices, strategy=strategy)
    started = TorchElasticEnvironment.detect()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if started and devices not in {0, here}:
        raise InvalidInput(f"devices is {devices}, but torchrun started {here} processes here; allowed: 0, {here}")
    wanted = devices or here
    nodes = max(1, int(os.environ.get("WORLD_SIZE", "1")) // here) if started else 1
    several = wanted * nodes > 1
    parallel: Any = "ddp" if several else "auto"
    if sharded := strategy == "fsdp" and several:
        parallel = ModelParallelStrategy(shard, data_parallel_size=wanted * nodes, tensor_parallel_size=1)
    # Fabric knows doubles with sharded weights only as a plugin.
    double = [DoublePrecision()] if sharded and precision == "64-true" else []
    made = Fabric(
        accelerator=accelerator,
        devices=wanted,
        num_nodes=nodes,
        strategy=parallel,
        precision=None if double else precision,
        # Named, or Fabric would read a cluster's variables and expect a process for each of its tasks.
        plugins=[TorchElasticEnvironment() if started else _environment(), *double],
    )
    if several:
        made.launch()
    return made


def _environment() -> Any:
    from lightning_fabric.plugins.environments import LightningEnvironment

    class Launched(LightningEnvironment):
        """The processes of `pathex.distributed.launched`, whose group is there already."""

        creates_processes_externally = True

        def local_rank(self) -> int:
            return torch.distributed.get_rank()

    return Launched() if torch.distributed.is_initialized() else LightningEnvironment()


def units(model: nn.Module, least: int = _LEAST) -> list[nn.Module]:
    """The modules whose weights are gathered together when they are used: the blocks of a network."""
    uses = Counter(_own(model))
    found: list[nn.Module] = []
    taken: set[nn.Parameter] = set()
    blocks = [
        child
        for module in model.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for child in module.children()
        if not isinstance(child, nn.ModuleList | nn.ModuleDict)
    ]
    for block in reversed(list(dict.fromkeys(blocks))):
        own = Counter(_own(block))
        left = [weight for weight in block.parameters() if weight not in taken]
        shared = any(uses[weight] != count for weight, count in own.items())
        if not shared and sum(weight.numel() for weight in left) >= least:
            found.append(block)
            taken.update(own)
    return found


def _own(model: nn.Module) -> list[nn.Parameter]:
    """Every use of a parameter by a module."""
    return [weight for _, weight in model.named_parameters(remove_duplicate=False)]


def shard(model: nn.Module, mesh: Any) -> nn.Module:
    """Spread the weights of a network over processes, in place; names and results stay as they are."""
    from torch.distributed.fsdp import fully_shard

    model.to(memory_format=torch.contiguous_format)  # weights in another layout are refused
    for module in [*units(model), model]:
        fully_shard(module, mesh=mesh["data_parallel"])
    return model


def whole(state: Any, *, keep: bool = True) -> Any:
    """A state with each sharded tensor in one piece on the CPU; every process calls it alike."""
    if isinstance(state, Mapping):
        return {name: whole(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [whole(value, keep=keep) for value in state]
    if isinstance(state, Tensor) and is_sharded(state):
        full = in_one_piece(state)
        return full.cpu() if keep else None
    return state

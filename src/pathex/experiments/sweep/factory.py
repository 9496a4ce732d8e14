"""The executor that a sweep asks for."""

from collections.abc import Iterable

from pathex.experiments.runs import RunConfig
from pathex.experiments.sweep.config import SweepConfig
from pathex.experiments.sweep.executors import Executor, processors, share

__all__ = ["create"]


def create(config: SweepConfig, runs: Iterable[RunConfig]) -> Executor:
    """The executor that the options of a sweep ask for, with a GPU if one of its runs may use it."""
    gpu = any(run.device != "cpu" for run in runs)
    if config.executor == "ray":
        from pathex.experiments.sweep.ray_tasks import RayExecutor

        return RayExecutor(config.concurrent, config.threads, gpu=gpu, address=config.address)
    import torch

    from pathex.experiments.sweep.local import LocalExecutor

    gpus = torch.cuda.device_count() if gpu else 0
    return LocalExecutor(share(config.concurrent, config.threads, gpus, processors()))

"""Work on a GPU that is told once and done again: what small networks cost is mostly telling the GPU what to do."""

from collections.abc import Callable

import torch

__all__ = ["Capture", "cuda_graph"]

Capture = Callable[[Callable[[], None], torch.device], Callable[[], object]]
"""Captures what a function does on a device; what is returned does it again."""


def cuda_graph(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """Capture what a function does on a GPU.

    Args:
        work: What to capture; it is called once, and nothing of it takes effect.
        device: The GPU.

    Returns:
        A function that does it again, on the current stream.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may pin memory meanwhile, which a capture of the whole process forbids.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay

"""What a network holds, and where its time goes."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from pathex.analysis import count
from pathex.experiments.measure.latency import threads_of_torch
from pathex.graph import cost, trace
from pathex.masks import bytes_on_disk, formats


def facts(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Sizes of a network with zeros where its mask removes.

    Args:
        model: The network.
        images: One image or more (N, C, H, W).

    Returns:
        ``parameters`` and ``kept``; ``multiply_adds`` of one image, and ``kept_multiply_adds``; ``bytes`` as dense
        safetensors, and ``sparse_bytes`` in the form ``sparse`` of `pathex.masks.write_mask`; ``activation_bytes``,
        the sum over all activations of one image.
    """
    mask, counts = formats.from_zeros(model), count(model, tuple(images.shape[1:]))
    return {
        "parameters": counts.parameters(),
        "kept": counts.parameters(mask),
        "multiply_adds": counts.multiply_adds(),
        "kept_multiply_adds": counts.multiply_adds(mask),
        "bytes": bytes_on_disk(model),
        "sparse_bytes": bytes_on_disk(model, mask),
        "activation_bytes": 4 * cost(trace(model, images)).activations,
    }


@torch.inference_mode()
def layers(model: nn.Module, images: Tensor, threads: int = 1, repeats: int = 7) -> list[dict[str, Any]]:
    """Where the time of a dense pass in torch goes.

    Args:
        model: The network in eval mode, zeros where its mask removes.
        images: The batch (N, C, H, W).
        threads: Threads of torch.
        repeats: Passes that are timed.

    Returns:
        A row a module without children that was called, in the order of the modules: ``layer``, ``kind``, ``kept`` and
        ``weights``, ``milliseconds`` (median, all its calls of a pass), ``share`` of the pass.
    """
    spent: dict[str, list[float]] = {}
    hooks, started = [], {}

    def before(name: str) -> None:
        started[name] = time.perf_counter()

    def after(name: str) -> None:
        spent[name][-1] += time.perf_counter() - started[name]

    modules = {name: module for name, module in model.named_modules() if name and not any(module.children())}
    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: before(name)))
        hooks.append(module.register_forward_hook(lambda *_, name=name: after(name)))
    whole = []
    try:
        with threads_of_torch(threads):
            for _ in range(repeats + 1):
                for name in modules:
                    spent.setdefault(name, []).append(0.0)
                start = time.perf_counter()
                model(images)
                whole.append(time.perf_counter() - start)
    finally:
        for hook in hooks:
            hook.remove()
    counts = formats.from_zeros(model).counts()
    rows = []
    for name, module in modules.items():
        seconds = statistics.median(spent[name][1:])
        own = [each for weight, each in counts.items() if weight.rpartition(".")[0] == name]
        row = {"layer": name, "kind": type(module).__name__}
        row |= {"kept": sum(each.kept for each in own), "weights": sum(each.total for each in own)}
        row |= {"milliseconds": 1e3 * seconds, "share": seconds / statistics.median(whole[1:])}
        rows += [row] if seconds else []
    return rows

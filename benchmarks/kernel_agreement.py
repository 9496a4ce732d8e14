"""How close the scores of `px` come to the diagonal of the kernel, beyond ReLU networks.

    python -m benchmarks.kernel_agreement             # 20 embedded images, minutes on one core

`px` is an expectation over the signs of the weights of what `ntk-diagonal` computes for the weights as they are,
``theta_j^2 sum_{n,k} (df_k(x_n) / dtheta_j)^2``. On ReLU networks that shows how close one draw of the weights can
come; on others also how well the rules fit by which smooth activations, normalisation, attention and gates are read. In
float64, with one row for each network, seed and coefficient of smooth activations (secant, tangent, mixed):

| column | meaning |
|---|---|
| `correlation`, `within_layers` | rank correlation of the two scores over all weights; the mean over layers |
| `same_tenth` | share of the best tenth that both find |
| `gates` | mean rank correlation within what feeds a coefficient only: gates, queries and keys |
| `gate_share` | share of the sum of all `px` scores that these weights hold |
| `gate_share_of_kernel` | the same of the kernel |
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn

import pathex
from benchmarks import networks
from benchmarks.measure import Table, arguments, command
from pathex.errors import PathexWarning

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet20 relu": lambda: pathex.models.create("resnet20", num_classes=10, in_channels=1),
    "resnet20 gelu": lambda: networks.resnet20(10, 1),
    "resnet20 silu": lambda: networks.resnet20(10, 1, "silu"),
    "vit_tiny, 4 blocks": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=7, depth=4, in_chans=1, num_classes=10
    ),
    "convnext_atto": lambda: nn.Sequential(
        nn.ZeroPad2d(2), timm.create_model("convnext_atto", in_chans=1, num_classes=10)
    ),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0", in_chans=1, num_classes=10),
    "mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050", in_chans=1, num_classes=10),
}


def _compare(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, float]:
    a, b = (torch.cat([part.flatten().double() for part in scores.values()]) for scores in (one, other))
    count = len(a) // 10
    best = [set(x.topk(count).indices.tolist()) for x in (a, b)]
    layers = [_spearman(one[name].flatten(), other[name].flatten()) for name in one]
    gates = [(_gate(name, one[name]), _gate(name, other[name])) for name in one if _gate(name, one[name]) is not None]
    within = [_spearman(x.flatten(), y.flatten()) for x, y in gates]
    return {
        "correlation": _spearman(a, b),
        "within_layers": sum(layers) / len(layers),
        "same_tenth": len(best[0] & best[1]) / count,
        "gates": sum(within) / len(within) if within else float("nan"),
        "gate_share": float(sum(x.sum() for x, _ in gates) / a.sum()),
        "gate_share_of_kernel": float(sum(y.sum() for _, y in gates) / b.sum()),
    }


def _gate(name: str, score: Tensor) -> Any:
    """The part of a weight that feeds a coefficient only, or None."""
    if ".se." in name:
        return score
    return score[: 2 * len(score) // 3] if ".qkv." in name else None


def _spearman(a: Tensor, b: Tensor) -> float:
    """Correlation of ranks, ties ranked alike."""
    return float(pd.Series(a.numpy()).rank().corr(pd.Series(b.numpy()).rank()))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "kernel_agreement")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images-per-class", type=int, default=2)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", PathexWarning)
    table = Table(given.out, {"seeds": given.seeds, "images_per_class": given.images_per_class}, threads=given.threads)
    for network in given.networks:
        for seed in given.seeds:
            images = pathex.data.pruning_set(pathex.data.load("fashion-mini"), given.images_per_class, seed).images
            torch.manual_seed(seed)
            model = NETWORKS[network]().double()
            exact = pathex.score(model, "ntk-diagonal", images.double())
            for smooth in ("secant", "tangent", "mixed"):
                found = _compare(pathex.score(model, "px", images.double(), smooth=smooth), exact)
                rounded = {name: round(value, 4) for name, value in found.items()}
                table.add({"network": network, "seed": seed, "smooth": smooth, **rounded})
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))

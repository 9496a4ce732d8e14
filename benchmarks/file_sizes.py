"""Bytes of a pruned network in each form that pathex writes, beside the dense safetensors file.

    python -m benchmarks.file_sizes                                        # ResNet-20, ResNet-18, MobileNetV2
    python -m benchmarks.file_sizes --models resnet20 --methods magnitude

One row for each model, method, sparsity and form: bytes, and how many times smaller than dense. `entropy` is what an
ideal code of the mask would take, layers being independent draws of their densities; `ticket` is the code of the mask
with its names and shapes alone, as `pathex.save_ticket` writes it beside the seed.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

import pathex
from benchmarks.measure import Table, arguments, command
from pathex.masks import codes, write_mask, write_tensors

__all__ = ["entropy", "main"]

_MODELS = ("resnet20", "timm:resnet18", "timm:mobilenetv2_100")


def entropy(mask: pathex.Mask) -> float:
    """Bytes of an ideal code of a mask, whose layers are independent draws of their densities."""
    shares = [(kept / total, total) for kept, total in mask.counts().values() if 0 < kept < total]
    return sum(-(p * math.log2(p) + (1 - p) * math.log2(1 - p)) * size for p, size in shares) / 8


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "file_sizes")
    parser.add_argument("--models", nargs="+", default=list(_MODELS))
    parser.add_argument("--methods", nargs="+", default=["px", "magnitude"])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.9, 0.982])
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    images = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(given.seed))
    table = Table(given.out, {"rounds": given.rounds, "seed": given.seed, "images": "noise"}, threads=given.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        for name in given.models:
            torch.manual_seed(given.seed)
            model = pathex.models.create(name, 1000 if ":" in name else 10, 3)
            save_file(model.state_dict(), path)
            dense = path.stat().st_size
            for method in given.methods:
                for sparsity in given.sparsity:
                    mask = pathex.prune(model, method, data=images, sparsity=sparsity, rounds=given.rounds).mask
                    sizes = {"entropy": round(entropy(mask))}
                    write_tensors(codes.pack(mask), path)
                    sizes["ticket"] = path.stat().st_size
                    write_mask(mask, path, "sparse", model)
                    sizes["sparse"] = path.stat().st_size
                    about = {"model": name, "method": method, "sparsity": sparsity}
                    for form, size in {"dense": dense, **sizes}.items():
                        table.add({**about, "form": form, "bytes": size, "times_smaller": round(dense / size, 1)})
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))

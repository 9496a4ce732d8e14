"""How many multiply-adds of a network's convolutions would be left in each round if dead channels were skipped.

    python benchmarks/live_channels.py                            # ResNet-20, 100 embedded images, 100 rounds
    python benchmarks/live_channels.py --model vgg16_bn --methods magnitude

A channel is dead here if no kept weight leads to it or none leads on from it. One row for each method, sparsity and
tenth round: density, and the share of the dense multiply-adds between live channels.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import pathex


def positions(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Output positions of each ungrouped convolution, by the name of its weight.

    Args:
        model: The network.
        image: One image ``(1, C, H, W)``.

    Returns:
        Name to height times width.
    """
    found: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.update({f"{name}.weight": out[0, 0].numel()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    ]
    with torch.no_grad():
        model.eval()(image)
    for hook in hooks:
        hook.remove()
    return found


def live(mask: Mapping[str, Tensor], sizes: Mapping[str, int]) -> float:
    """Share of the multiply-adds that lie between live channels.

    Args:
        mask: Name to bool tensor.
        sizes: Output positions by name.

    Returns:
        The share, in [0, 1].
    """
    dense = sum(mask[name].numel() * size for name, size in sizes.items())
    left = 0
    for name, size in sizes.items():
        inputs, outputs = (mask[name].transpose(0, d).flatten(1).any(1).sum() for d in (1, 0))
        left += int(inputs) * int(outputs) * mask[name][0, 0].numel() * size
    return left / dense


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--methods", nargs="+", default=["px", "magnitude"])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.982, 0.995])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rows" / "live_channels.csv")
    args = parser.parse_args()
    data = pathex.data.load(args.data)
    images = pathex.data.pruning_set(data, 10, 0).images
    torch.manual_seed(0)
    model = pathex.models.create(args.model, data.num_classes, data.in_channels)
    sizes, rows = positions(model, images[:1]), []
    for method in args.methods:
        for sparsity in args.sparsity:

            def note(
                row: dict[str, float], mask: pathex.Mask, method: str = method, sparsity: float = sparsity
            ) -> None:
                if row["round"] % 10 == 0:
                    rows.append(
                        {
                            "model": args.model,
                            "method": method,
                            "sparsity": sparsity,
                            "round": row["round"],
                            "density": round(row["density"], 4),
                            "multiply_adds_left": round(live(mask, sizes), 4),
                        }
                    )
                    print(rows[-1], flush=True)

            pathex.prune(model, method, data=images, sparsity=sparsity, rounds=args.rounds, on_round=note)
    pd.DataFrame(rows).to_csv(args.out, index=False)


if __name__ == "__main__":
    main()

"""How many multiply-adds of a network's convolutions would be left in each round if dead channels were skipped.

    python -m benchmarks.live_channels                            # ResNet-20, 100 embedded images, 100 rounds
    python -m benchmarks.live_channels --model vgg16_bn --methods magnitude

A channel is dead here if no kept weight leads to it or none leads on from it. One row for each method, sparsity and
tenth round: density, and the share of the dense multiply-adds between live channels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import pathex
from benchmarks.measure import Row, Table, arguments, command

__all__ = ["live", "main", "positions"]


def positions(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Output positions of each ungrouped convolution for one image ``(1, C, H, W)``, by the name of its weight."""
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
    """Share of the multiply-adds that lie between live channels, from output positions by name."""
    dense = sum(mask[name].numel() * size for name, size in sizes.items())
    left = 0
    for name, size in sizes.items():
        inputs, outputs = (mask[name].transpose(0, d).flatten(1).any(1).sum() for d in (1, 0))
        left += int(inputs) * int(outputs) * mask[name][0, 0].numel() * size
    return left / dense


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the rows."""
    parser = arguments(__doc__, "live_channels")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--methods", nargs="+", default=["px", "magnitude"])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.982, 0.995])
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    data = pathex.data.load(given.data)
    images = pathex.data.pruning_set(data, 10, given.seed).images
    torch.manual_seed(given.seed)
    model = pathex.models.create(given.model, data.num_classes, data.in_channels)
    table = Table(given.out, {"data": data.name, "rounds": given.rounds, "seed": given.seed}, threads=given.threads)
    sizes = positions(model, images[:1])
    for method in given.methods:
        for sparsity in given.sparsity:
            about = {"model": given.model, "method": method, "sparsity": sparsity}

            def note(row: Row, mask: pathex.Mask, about: Row = about) -> None:
                if row["round"] % 10 == 0:
                    left = {"density": round(row["density"], 4), "multiply_adds_left": round(live(mask, sizes), 4)}
                    table.add({**about, "round": row["round"], **left})

            pathex.prune(model, method, data=images, sparsity=sparsity, rounds=given.rounds, on_round=note)
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))

"""The architectures of the zoo: networks of torchvision and timm, small variants, at the smallest image they accept.

`architectures.csv` has a row for each: its name for `pathex.models.create`, its family, the side of the image, the
options of its constructor, its parameters and the multiply-adds of one image, and whether all scorers run on it or six.
A row is made by `describe`. Networks with attention get at least 64 pixels, so that it sees more than one token.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pathex

__all__ = [
    "FILE",
    "IMAGES",
    "LEFT_OUT",
    "SEGMENTATION",
    "Architecture",
    "build",
    "catalogue",
    "describe",
    "first_output",
]

FILE = Path(__file__).with_name("architectures.csv")
CLASSES = 4
# BatchNorm on the statistics of a batch turns two values into 1 and -1, whatever the weights: gradients would vanish.
IMAGES = 4
SEGMENTATION = "torchvision.models.segmentation:"
LEFT_OUT: Mapping[str, str] = {
    "torchvision:convnext_large": "196 million parameters; convnext_base is the same code",
    "torchvision:regnet_y_128gf": "644 million parameters; regnet_y_32gf is the same code",
    "torchvision:vit_h_14": "632 million parameters; vit_b_16 is the same code",
    "torchvision:vit_l_16": "303 million parameters; vit_b_16 is the same code",
    "torchvision:vit_l_32": "305 million parameters; vit_b_32 is the same code",
}
_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384)
_BACKBONE = {"weights_backbone": None}  # or torchvision downloads them


@dataclass(frozen=True)
class Architecture:
    """One row of the catalogue.

    Attributes:
        model: Name for `pathex.models.create`.
        family: What it is a variant of.
        size: Side of the square image.
        options: Options of the constructor.
        parameters: Number of parameters.
        multiply_adds: Of convolutions and matrix products, for one image.
        methods: ``all`` scorers run on it, or ``six``.
    """

    model: str
    family: str
    size: int
    options: Mapping[str, Any]
    parameters: int = 0
    multiply_adds: int = 0
    methods: str = "six"

    def row(self) -> dict[str, str]:
        """The row as text."""
        options = yaml.safe_dump(dict(self.options), default_flow_style=True, width=1000).strip()
        row = {**vars(self), "options": "" if options == "{}" else options}
        return {column: str(value) for column, value in row.items()}


def catalogue() -> list[Architecture]:
    """All rows, in the order of the file."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return [
            Architecture(
                row["model"],
                row["family"],
                int(row["size"]),
                yaml.safe_load(row["options"]) if row["options"] else {},
                int(row["parameters"]),
                int(row["multiply_adds"]),
                row["methods"],
            )
            for row in csv.DictReader(file)
        ]


def build(architecture: Architecture, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with random weights, in training mode as its constructor leaves it, and a pruning set."""
    torch.manual_seed(seed)
    model = pathex.models.create(architecture.model, num_classes=CLASSES, **architecture.options)
    x = torch.randn(IMAGES, 3, architecture.size, architecture.size)
    y = torch.arange(IMAGES) % CLASSES
    if architecture.model.startswith(SEGMENTATION):
        y = torch.randint(CLASSES, (IMAGES, architecture.size, architecture.size))
    return model, x, y


def describe(model: str, family: str, smallest: int = 32) -> Architecture:
    """The row of a new architecture: tries sizes, as they are and through the argument of the constructor."""
    error: Exception | None = None
    for candidate in _candidates(model, family, smallest):
        try:
            network, x, _ = build(candidate)
            _assert_runs(network, x)
        except Exception as failure:
            error = failure  # whatever a constructor or a forward pass of others raises, the size does not fit
            continue
        with FlopCounterMode(display=False) as counter:  # its hooks trip over views of parameters without gradient
            network.eval()(x[:1])
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return replace(candidate, parameters=parameters, multiply_adds=counter.get_total_flops() // 2)
    raise ValueError(f"{model} accepts no image of {smallest} to {_SIZES[-1]} pixels: {error}")


def first_output(result: Any) -> Tensor:
    """The tensor that a network returns, the first one of several."""
    if isinstance(result, Mapping):
        result = tuple(result.values())
    first: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return first


def _candidates(model: str, family: str, smallest: int) -> Iterator[Architecture]:
    base = _BACKBONE if model.startswith(SEGMENTATION) else {}
    for size in _SIZES:
        if size >= smallest:
            sized = {"img_size": size}, {"image_size": size}, {"input_size": [size, size]}
            for options in ({}, *sized):
                yield Architecture(model, family, size, {**base, **options})


def _assert_runs(network: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for images, training in ((x, False), (x[:1], False), (x, True)):
            network.train(training)
            out = first_output(network(images))
            assert len(out) == len(images), "the first dimension of the output is not the batch"
            assert out.isfinite().all(), "the output is not finite"

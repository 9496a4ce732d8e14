"""The network that ``pathex export`` and ``pathex bench`` are about: of a run, or by name with weights and mask."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathex.errors import InvalidInput
from pathex.experiments.runs import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkOptions:
    """Which network.

    Attributes:
        run: Folder of a finished run, whose trained network with its mask it is; null takes ``model``.
        model: Name of a model (see ``pathex models``); with a run only where its network is ``package.module:factory``.
        model_options: Options of the model's factory, such as ``width``.
        num_classes: Outputs of the model.
        in_channels: Channels of its images.
        weights: Its weights: a file, ``imagenet`` or another tag of the model's own library; null draws them.
        mask: Mask file in any form that ``pathex convert`` reads; null: what is zero is removed.
        image_size: Side of the images in pixels; null is the run's.
    """

    run: str | None = None
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    num_classes: PositiveInt = 10
    in_channels: PositiveInt = 3
    weights: str | None = None
    mask: str | None = None
    image_size: PositiveInt | None = None


def load_network(options: NetworkOptions, command: str) -> "tuple[nn.Module, Tensor]":
    """The network in eval mode, the zeros of its mask in place, and an example of one image (1, C, H, W)."""
    import torch

    from pathex import models
    from pathex.experiments.runs import load_run
    from pathex.masks import make_permanent, read_mask

    if options.run is None and options.model is None:
        raise InvalidInput(
            f"no network given; for instance: pathex {command} RUN-FOLDER, or pathex {command} --model resnet20"
        )
    size, channels = options.image_size, options.in_channels
    if options.run is not None:
        if options.weights is not None or options.mask is not None or options.model_options:
            raise InvalidInput("a run has its weights, mask and model options; leave --weights, --mask and them out")
        foreign = options.model is not None
        network = load_run(options.run, partial(models.create, options.model) if foreign else None)  # type: ignore[arg-type]
        preprocessing: Any = network.preprocessing
        size, channels = size or preprocessing.size, len(preprocessing.mean)
    else:
        network = models.create(
            str(options.model), options.num_classes, channels, weights=options.weights, **options.model_options
        )
        if options.mask is not None:
            make_permanent(network, read_mask(Path(options.mask), network))
    if size is None:
        raise InvalidInput("--image-size is not given; allowed: the side of the images in pixels")
    example = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    return network.float().eval(), example

"""VGG networks with BatchNorm for small images.

Simonyan, Zisserman, "Very Deep Convolutional Networks" (ICLR 2015), in the form of the pruning literature: BatchNorm
after each convolution, the last of the five max pools replaced by a global average pool, one linear layer.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.models.resnet import kaiming_normal

_CHANNELS = (64, 128, 256, 512, 512)
_LAYERS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class CifarVGG(nn.Module):
    """VGG of five stages of 3x3 convolutions.

    Args:
        depth: 11, 16 or 19, as the original's name counts (it had three linear layers, here there is one).
        num_classes: Outputs.
        in_channels: Channels of the images, which need at least 16 pixels a side.
        width: Factor on the channels of every convolution, which are 64, 128, 256, 512 and 512 at 1.

    Raises:
        InvalidInput: If depth or width cannot be used.

    Example:
        >>> model = CifarVGG(16, num_classes=100, width=0.125)
        >>> [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
        [(100, 64)]
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        if depth not in _LAYERS:
            raise InvalidInput(f"depth of VGG must be 11, 16 or 19, got {depth!r}")
        if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width < float("inf"):
            raise InvalidInput(f"option 'width' of VGG must be a positive number, got {width!r}")
        layers: list[nn.Module] = []
        incoming = in_channels
        for stage, (full_width, count) in enumerate(zip(_CHANNELS, _LAYERS[depth], strict=True)):
            channels = max(1, round(full_width * width))
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(incoming, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                incoming = channels
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(incoming, num_classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))

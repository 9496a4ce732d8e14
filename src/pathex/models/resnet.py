"""ResNets for small images.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2, with the projection
shortcut (option B) that the pruning literature uses: a 1x1 convolution and BatchNorm wherever the shape changes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.models._initialization import kaiming_normal

__all__ = ["CifarResNet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        in_channels: Channels that arrive.
        channels: Channels of both convolutions.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply both convolutions and the shortcut.

        Args:
            x: Features (N, in_channels, H, W).

        Returns:
            Features (N, channels, H / stride, W / stride).
        """
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of three stages with ``width``, ``2 width`` and ``4 width`` channels.

    Args:
        depth: Layers of weights on the longest path, ``6 n + 2`` with n blocks in each stage.
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage.

    Raises:
        InvalidInput: If the depth is not 8, 14, 20, ... or the width is not a positive integer.

    Example:
        >>> model = CifarResNet(20)
        >>> sum(p.numel() for p in model.parameters() if p.ndim > 1)
        270896
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InvalidInput(f"depth of a CIFAR ResNet must be 6 n + 2 (8, 14, 20, ...), got {depth!r}")
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise InvalidInput(f"option 'width' of a CIFAR ResNet must be a positive integer, got {width!r}")
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        incoming = width
        for stage in range(3):
            for number in range((depth - 2) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(BasicBlock(incoming, width * 2**stage, stride))
                incoming = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(incoming, num_classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images (N, in_channels, H, W).

        Returns:
            Logits (N, num_classes).
        """
        features = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))

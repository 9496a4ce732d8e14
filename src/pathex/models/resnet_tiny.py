"""ResNets of four stages for images of 64 pixels, such as those of Tiny-ImageNet.

The networks of He, Zhang, Ren, Sun (CVPR 2016), table 1, with a 3x3 stem of stride 1 and without its max pool, as the
pruning literature uses them. Blocks are those of torchvision; a bottleneck has its stride in the 3x3 convolution
(v1.5). Apart from the stem, names and shapes at ``width=64`` are those of torchvision.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput, check_integer
from pathex.models.resnet import kaiming_normal

_BLOCKS: Mapping[int, tuple[str, tuple[int, ...]]] = MappingProxyType(
    {18: ("BasicBlock", (2, 2, 2, 2)), 34: ("BasicBlock", (3, 4, 6, 3)), 50: ("Bottleneck", (3, 4, 6, 3))}
)


class TinyResNet(nn.Module):
    """ResNet of four stages with ``width``, ``2 width``, ``4 width`` and ``8 width`` channels.

    Args:
        depth: 18, 34 or 50.
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage; bottlenecks (depth 50) give four times as many.

    Raises:
        InvalidInput: If depth or width cannot be used.

    Example:
        >>> model = TinyResNet(18, num_classes=200, width=8)
        >>> model.conv1, model.fc
        (Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False), \
Linear(in_features=64, out_features=200, bias=True))
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise InvalidInput(f"depth of a ResNet for 64 pixels must be 18, 34 or 50, got {depth!r}")
        check_integer("option 'width' of a ResNet", width)
        kind, counts = _BLOCKS[depth]
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        incoming = width
        stages = []
        for number, count in enumerate(counts):
            stage, incoming = _stage(kind, incoming, width * 2**number, count, stride=1 if number == 0 else 2)
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(incoming, num_classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        features = F.relu(self.bn1(self.conv1(x)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))


def _stage(kind: str, incoming: int, channels: int, count: int, stride: int) -> tuple[nn.Sequential, int]:
    from torchvision.models import resnet

    block = getattr(resnet, kind)
    outgoing = channels * block.expansion
    shortcut = None
    if stride != 1 or incoming != outgoing:
        shortcut = nn.Sequential(nn.Conv2d(incoming, outgoing, 1, stride=stride, bias=False), nn.BatchNorm2d(outgoing))
    first = block(incoming, channels, stride, shortcut)
    return nn.Sequential(first, *(block(outgoing, channels) for _ in range(count - 1))), outgoing

"""Networks for small images: ResNets of three and of four stages, and VGG networks with BatchNorm.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016). Three stages: section 4.2. Where the
shape changes, the shortcut is the projection that the pruning literature uses (option B: a 1x1 convolution and
BatchNorm), or the paper's own for these networks (option A: strided, padded with zero channels, without parameters).
Four stages, for images of 64 pixels such as those of Tiny-ImageNet: table 1, with a 3x3 stem of stride 1 and without
its max pool, as the pruning literature uses them. Blocks are those of torchvision; a bottleneck has its stride in the
3x3 convolution (v1.5). Apart from the stem, names and shapes at ``width=64`` are those of torchvision.

Simonyan, Zisserman, "Very Deep Convolutional Networks" (ICLR 2015), in the form of the pruning literature: BatchNorm
after each convolution, the last of the five max pools replaced by a global average pool, one linear layer.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput, check_integer

_BLOCKS: Mapping[int, tuple[str, tuple[int, ...]]] = MappingProxyType(
    {18: ("BasicBlock", (2, 2, 2, 2)), 34: ("BasicBlock", (3, 4, 6, 3)), 50: ("Bottleneck", (3, 4, 6, 3))}
)
_CHANNELS = (64, 128, 256, 512, 512)
_LAYERS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def kaiming_normal(model: nn.Module) -> None:
    """Draw weights of convolutions and linear layers by Kaiming's normal rule (fan in, ReLU gain)."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)


class PadShortcut(nn.Module):
    """The shortcut without parameters: every ``stride``-th position, new channels of zeros before (half) and behind."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - in_channels) // 2
        self.behind = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """From (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which follows a change of shape by ``conv`` or ``pad``."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str = "conv") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        changes = stride != 1 or in_channels != channels
        if changes and shortcut == "pad":
            self.shortcut = PadShortcut(in_channels, channels, stride)
        elif changes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """From (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of three stages with ``width``, ``2 width`` and ``4 width`` channels.

    Args:
        depth: Layers of weights on the longest path, ``6 n + 2`` with n blocks in each stage.
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage.
        shortcut: ``conv`` (option B, 1x1 convolution and BatchNorm) or ``pad`` (option A, no parameters).

    Raises:
        InvalidInput: If the depth is not 8, 14, 20, ..., the width is not a positive integer, or the shortcut is
            neither of the two.

    Examples:
        >>> model = CifarResNet(20)
        >>> sum(p.numel() for p in model.parameters() if p.ndim > 1)
        270896
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 16, shortcut: str = "conv"
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InvalidInput(f"depth of a CIFAR ResNet must be 6 n + 2 (8, 14, 20, ...), got {depth!r}")
        check_integer("option 'width' of a CIFAR ResNet", width)
        if shortcut not in {"conv", "pad"}:
            raise InvalidInput(f"option 'shortcut' of a CIFAR ResNet must be conv or pad, got {shortcut!r}")
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        incoming = width
        for stage in range(3):
            for number in range((depth - 2) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(BasicBlock(incoming, width * 2**stage, stride, shortcut))
                incoming = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(incoming, num_classes)
        kaiming_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        features = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))


def from_stage_names(model: CifarResNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors that count the blocks of each stage, as torchvision does: ``layer2.0.x`` to ``blocks.3.x``."""
    if not any(name.startswith("layer1.0.") for name in tensors):
        return dict(tensors)
    count = len(model.blocks) // 3
    tops = {"conv1": "conv", "bn1": "bn", "linear": "fc"}
    renamed = {}
    for name, tensor in tensors.items():
        top, dot, rest = name.partition(".")
        found = re.fullmatch(r"layer([123])\.(\d+)\.(.+)", name)
        if found and int(found[2]) < count:
            inside = found[3].replace("downsample.", "shortcut.")
            renamed[f"blocks.{(int(found[1]) - 1) * count + int(found[2])}.{inside}"] = tensor
        else:
            renamed[tops.get(top, top) + dot + rest] = tensor
    return renamed


class TinyResNet(nn.Module):
    """ResNet of four stages with ``width``, ``2 width``, ``4 width`` and ``8 width`` channels.

    Args:
        depth: 18, 34 or 50.
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage; bottlenecks (depth 50) give four times as many.

    Raises:
        InvalidInput: If depth or width cannot be used.

    Examples:
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


class CifarVGG(nn.Module):
    """VGG of five stages of 3x3 convolutions.

    Args:
        depth: 11, 16 or 19, as the original's name counts (it had three linear layers, here there is one).
        num_classes: Outputs.
        in_channels: Channels of the images, which need at least 16 pixels a side.
        width: Factor on the channels of every convolution, which are 64, 128, 256, 512 and 512 at 1.

    Raises:
        InvalidInput: If depth or width cannot be used.

    Examples:
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

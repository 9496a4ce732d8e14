"""The visual tower of CLIP's ResNets, written out from its description (Radford et al. 2021, section 2.4).

Names of parameters are those of the released files. It differs from a ResNet-50 by a stem of three convolutions and an
average pool, average pools before strides, and attention over positions in place of the last pool.
"""

from collections import OrderedDict

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, incoming, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.stride = stride
        self.downsample = None
        if stride > 1 or incoming != 4 * channels:
            layers = [("-1", nn.AvgPool2d(stride)), ("0", nn.Conv2d(incoming, 4 * channels, 1, bias=False))]
            self.downsample = nn.Sequential(OrderedDict([*layers, ("1", nn.BatchNorm2d(4 * channels))]))

    def forward(self, x):
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        if self.stride > 1:
            out = nn.functional.avg_pool2d(out, self.stride)
        out = self.bn3(self.conv3(out))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class AttentionPool(nn.Module):
    def __init__(self, positions, channels, outputs):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, channels) / channels**0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, outputs)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self.positional_embedding
        keys, values, query = self.k_proj(tokens), self.v_proj(tokens), self.q_proj(tokens[:, 0])
        heads = []
        for head in range(x.shape[1] // 64):
            part = slice(64 * head, 64 * head + 64)
            weights = torch.einsum("nc,ntc->nt", query[:, part], keys[:, :, part] / 8).softmax(1)
            heads.append(torch.einsum("nt,ntc->nc", weights, values[:, :, part]))
        return self.c_proj(torch.cat(heads, 1))


class VisualTower(nn.Module):
    """RN50 at 224 pixels: 49 positions, 1024 outputs."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(32), nn.BatchNorm2d(32), nn.BatchNorm2d(64)
        incoming = 64
        for stage, (channels, count) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
            blocks = []
            for number in range(count):
                blocks.append(Block(incoming, channels, 2 if stage > 1 and number == 0 else 1))
                incoming = 4 * channels
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(49, 2048, 1024)

    def features(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = norm(conv(x)).relu()
        x = nn.functional.avg_pool2d(x, 2)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.attnpool(self.features(x))

"""Networks by name: own CIFAR networks, timm, torchvision, and any factory that Python can import."""

from pathex.models._catalogue import create, describe, names, prefixes
from pathex.models.resnet import CifarResNet
from pathex.models.vgg import CifarVGG

__all__ = ["CifarResNet", "CifarVGG", "create", "describe", "names", "prefixes"]

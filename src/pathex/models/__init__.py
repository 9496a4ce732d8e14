"""Networks by name: own networks for small images, timm, torchvision, segmentation-models-pytorch, and any factory."""

from pathex.models._catalogue import create, describe, names, prefixes
from pathex.models._heads import head_parameters
from pathex.models._loading import WeightsReport, load_weights
from pathex.models._normalisation import expected_normalisation
from pathex.models.resnet import CifarResNet
from pathex.models.resnet_tiny import TinyResNet
from pathex.models.vgg import CifarVGG

__all__ = [
    "CifarResNet",
    "CifarVGG",
    "TinyResNet",
    "WeightsReport",
    "create",
    "describe",
    "expected_normalisation",
    "head_parameters",
    "load_weights",
    "names",
    "prefixes",
]

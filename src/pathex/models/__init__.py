"""Networks by name: own networks for small images, timm, torchvision, segmentation-models-pytorch, and any factory."""

from pathex.models.catalogue import create, describe, is_foreign, names, own, prefixes
from pathex.models.heads import head_parameters
from pathex.models.libraries import from_factory
from pathex.models.networks import CifarResNet, CifarVGG, TinyResNet
from pathex.models.normalisation import expected_normalisation
from pathex.models.weights import WeightsReport, load_weights

__all__ = [
    "CifarResNet",
    "CifarVGG",
    "TinyResNet",
    "WeightsReport",
    "create",
    "describe",
    "expected_normalisation",
    "from_factory",
    "head_parameters",
    "is_foreign",
    "load_weights",
    "names",
    "own",
    "prefixes",
]

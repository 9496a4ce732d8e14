"""Pixels on their way to the device."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device without waiting for what the device is doing."""
    if device.type == "cuda" and values.device.type == "cpu":
        # Only copies from pinned memory let the host go on.
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(images / 255 - mean) / std`` of uint8 (B, C, H, W), in float32, where the images are."""
    mean, std = (upload(values, images.device).view(-1, 1, 1) for values in (mean, std))
    return images.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)

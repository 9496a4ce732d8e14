"""Files of a few small images."""

import numpy as np
from PIL import Image

from pathex.data import SegmentationSplit


def write_images(path, train=64, test=16, val=8, classes=4, contrast=0, seed=0):
    """Write an archive of colour images of 8 pixels; with contrast their brightness tells the class.

    Returns the name of the data.
    """
    draws, arrays = np.random.default_rng(seed), {}
    for part, count in (("train", train), ("val", val), ("test", test)):
        labels = np.arange(count) % classes
        noise = draws.integers(60 if contrast else 256, size=(count, 8, 8, 3))
        arrays[f"{part}_images"] = (noise + contrast * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"{part}_labels"] = labels[:, None]
    np.savez(path, **arrays)
    return f"npz:{path}"


def write_image(path, pixels, size=(8, 8)):
    """Write an array of pixels, or an image of one colour or grey value, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(pixels, np.ndarray):
        pixels = np.full((*size[::-1], *np.shape(pixels)), pixels, np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def write_pairs(folder, pairs, num_classes):
    """Write images and their label maps, of these numbers of classes; the split that they are."""
    files = ((write_image(folder / f"{n}.png", x), write_image(folder / f"mask{n}.png", y)) for n, (x, y) in pairs)
    return SegmentationSplit(*zip(*files, strict=True), num_classes)

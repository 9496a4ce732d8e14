"""A folder in the layout of Pascal VOC 2012, with coloured rectangles for objects."""

import numpy as np
from PIL import Image

PALETTE = [0] * 768
PALETTE[:12] = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # of Pascal VOC: background, aeroplane, bicycle, bird
PALETTE[3 * 15 : 3 * 16], PALETTE[3 * 255 :] = [192, 128, 128], [224, 224, 192]  # person, border


def write_voc(root, train, test=4, size=(30, 40), classes=(0, 1, 2, 3), seed=0):
    """Write ``train`` + ``test`` pairs; each image shows one class of its own turn on background, framed by 255.

    The colour of an object tells its class. Returns the folder ``VOC2012``.
    """
    draws, base = np.random.default_rng(seed), root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    for part, count in (("train", train), ("val", test)):
        names = [f"{part}_{number:03}" for number in range(count)]
        for number, name in enumerate(names):
            labels = rectangle(draws, size, classes[1 + number % (len(classes) - 1)])
            write_pair(base, name, labels, draws)
        (base / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    return base


def rectangle(draws, size, label):
    height, width = size
    labels = np.zeros(size, dtype=np.uint8)
    top, left = draws.integers(2, height // 4), draws.integers(2, width // 4)
    bottom, right = draws.integers(height // 2 + 3, height - 2), draws.integers(width // 2 + 3, width - 2)
    labels[top - 1 : bottom + 1, left - 1 : right + 1] = 255
    labels[top:bottom, left:right] = label
    return labels


def write_pair(base, name, labels, draws):
    shown = np.where(labels == 255, 0, labels).astype(int)
    pixels = np.stack([40 * shown + 20, 200 - 40 * shown, 100 + 0 * shown], axis=-1)
    pixels = (pixels + draws.integers(0, 15, pixels.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(base / "JPEGImages" / f"{name}.jpg", quality=95)
    mask = Image.fromarray(labels, mode="P")
    mask.putpalette(PALETTE)
    mask.save(base / "SegmentationClass" / f"{name}.png")

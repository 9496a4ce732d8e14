"""Segmentation pixel by pixel: windows of images, mean IoU, and averages over windows."""

import numpy as np

IGNORED = 255


def window(image, labels, top, left, crop, side, colour):
    """The window whose first pixel is (top, left), on a square of ``side`` filled with colour and 255."""
    picture = np.empty((3, side, side), dtype=np.uint8)
    marks = np.full((side, side), IGNORED, dtype=np.uint8)
    height, width = labels.shape
    for row in range(side):
        for column in range(side):
            y, x = top + row, left + column
            inside = row < crop and column < crop and 0 <= y < height and 0 <= x < width
            for channel in range(3):
                picture[channel, row, column] = image[channel, y, x] if inside else colour[channel]
            if inside:
                marks[row, column] = labels[y, x]
    return picture, marks


def mean_iou(predictions, truths, num_classes):
    """Mean over the classes that occur in predictions or truths of labelled pixels, all images together."""
    both, either = [0] * num_classes, [0] * num_classes
    for prediction, truth in zip(predictions, truths, strict=True):
        for guess, right in zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if right == IGNORED:
                continue
            for number in {guess, right}:
                either[number] += 1
            if guess == right:
                both[right] += 1
    shares = [hit / union for hit, union in zip(both, either, strict=True) if union]
    return sum(shares) / len(shares)


def averaged(network, image, crop, stride, side, num_classes):
    """Logits of every pixel of one image (C, H, W): the mean over the windows that hold it, float64 (K, H, W)."""
    channels, height, width = image.shape
    tall, wide = max(height, crop), max(width, crop)
    sums, counts = np.zeros((num_classes, tall, wide)), np.zeros((tall, wide))
    tops = sorted({min(stride * step, tall - crop) for step in range(tall)})
    lefts = sorted({min(stride * step, wide - crop) for step in range(wide)})
    for top in tops:
        for left in lefts:
            tile = np.zeros((channels, side, side))
            for row in range(crop):
                for column in range(crop):
                    if top + row < height and left + column < width:
                        tile[:, row, column] = image[:, top + row, left + column]
            logits = network(tile)
            for row in range(crop):
                for column in range(crop):
                    sums[:, top + row, left + column] += logits[:, row, column]
                    counts[top + row, left + column] += 1
    return (sums / counts)[:, :height, :width]

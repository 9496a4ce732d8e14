"""Random crops and changes of colour, one image and one pixel at a time, in Python's floats."""

import colorsys
import math


def box(areas, ratios, corner, height, width, largest):
    """Top, left, height and width of the part: the first try that fits, else the largest allowed one in the centre."""
    for area, ratio in zip(areas, ratios, strict=True):
        columns = round(math.sqrt(area * height * width * ratio))
        rows = round(math.sqrt(area * height * width / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return int(corner[0] * (height - rows + 1)), int(corner[1] * (width - columns + 1)), rows, columns
    rows, columns = height, width
    if width / height < 1 / largest:
        rows = round(width * largest)
    elif width / height > largest:
        columns = round(height * largest)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def resample(line, size):
    """A list of values brought to another length by a triangle filter that widens where it shrinks."""
    scale = len(line) / size
    reach = max(scale, 1.0)
    out = []
    for place in range(size):
        centre = (place + 0.5) * scale
        total = weight = 0.0
        for number, value in enumerate(line):
            share = max(0.0, 1.0 - abs(number + 0.5 - centre) / reach)
            total, weight = total + share * value, weight + share
        out.append(total / weight)
    return out


def resized_crop(channel, where, size):
    """One channel (a list of rows), cut and resized."""
    top, left, rows, columns = where
    cut = [row[left : left + columns] for row in channel[top : top + rows]]
    wide = [resample(row, size) for row in cut]
    tall = [resample([row[place] for row in wide], size) for place in range(size)]
    return [[tall[column][row] for column in range(size)] for row in range(size)]


def _grey(pixel):
    return 0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def _clamped(pixel):
    return tuple(min(1.0, max(0.0, value)) for value in pixel)


def _shifted(pixel, shift):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)


def jitter(pixels, factors, order):
    """Pixels (red, green, blue in [0, 1]) after brightness, contrast, saturation and hue in the given order."""
    for step in order:
        factor = factors[step]
        mean = sum(_grey(pixel) for pixel in pixels) / len(pixels)
        if step == 0:
            pixels = [_clamped(factor * value for value in pixel) for pixel in pixels]
        elif step == 1:
            pixels = [_clamped(factor * value + (1 - factor) * mean for value in pixel) for pixel in pixels]
        elif step == 2:
            pixels = [_clamped(factor * value + (1 - factor) * _grey(pixel) for value in pixel) for pixel in pixels]
        else:
            pixels = [_shifted(pixel, factor) for pixel in pixels]
    return pixels

"""Ridge regression as a least-squares problem on all images at once, with a row for each penalised weight."""

import numpy as np


def ridge(features, targets, alpha, intercept=True):
    """Weights (K, D) and intercept (K,) of ``sum |y - W x - b|^2 + alpha |W|^2``; the intercept is not penalised."""
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    (images, size), classes = x.shape, y.shape[1]
    design = np.zeros((images + size, size + 1))
    design[:images, :size] = x
    design[:images, size] = float(intercept)
    for row in range(size):
        design[images + row, row] = np.sqrt(alpha)
    wanted = np.concatenate([y, np.zeros((size, classes))])
    if not intercept:
        design = design[:, :size]
    solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
    return solution[:size].T, solution[size] if intercept else np.zeros(classes)

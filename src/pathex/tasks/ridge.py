"""Ridge regression from sums over images, so that the features of all images are never in memory at once."""

import torch
from torch import Tensor

from pathex.errors import InvalidInput


class RidgeMoments:
    """Sums over images of D features and K targets, from which a ridge regression follows in closed form.

    ``sums``, float64 (D + 1 + K, D + 1 + K), may be added over processes before it is solved.
    """

    def __init__(self, features: int, targets: int, device: torch.device) -> None:
        self._features = features
        # In float64, so that batches and their order play no part beyond its rounding.
        # Products of all pairs of columns of [features, 1, targets].
        side = features + 1 + targets
        self.sums = torch.zeros(side, side, dtype=torch.float64, device=device)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add a batch: features (B, D) and targets (B, K), on the device of the sums."""
        ones = features.new_ones(len(features), 1, dtype=torch.float64)
        rows = torch.cat([features.double(), ones, targets.double()], dim=1)
        self.sums += rows.T @ rows

    def solve(self, alpha: float, *, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """W, float64 (K, D), and b (K,) on the CPU that minimise ``sum_n |y_n - W x_n - b|^2 + alpha |W|^2``."""
        # A sum over images, not their mean, and b is not penalised: the convention of scikit-learn's Ridge.
        sums, size = self.sums.cpu(), self._features
        if not torch.isfinite(sums).all():
            raise InvalidInput("ridge regression: the features of the images are not finite")
        images = sums[size, size]
        if not images:
            raise InvalidInput("ridge regression: there are no images")
        gram, cross = sums[:size, :size], sums[:size, size + 1 :]
        features, targets = sums[:size, size] / images, sums[size, size + 1 :] / images
        if intercept:
            gram = gram - images * torch.outer(features, features)
            cross = cross - images * torch.outer(features, targets)
        penalised = gram + alpha * torch.eye(size, dtype=gram.dtype)
        # Beside features of 1e10 the penalty is lost in rounding: by singular values the solution stays finite.
        weights = torch.linalg.lstsq(penalised, cross, driver="gelsd").solution.T
        return weights, (targets - weights @ features) * float(intercept)

"""The spectrum of the kernel: exactly, or by Lanczos quadrature."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pathex.errors import InvalidInput, check_integer
from pathex.graph import Tensors
from pathex.ntk.estimates import Operator, curvlinops, half_width, repeated
from pathex.ntk.kernel import PUSHED, Cost, Kernel, products_bytes, symmetric
from pathex.ntk.network import Options, network_of

if TYPE_CHECKING:
    from altair import LayerChart

_ROUNDING = 16  # eigenvalues in float32 were off by up to 4 times its precision and the largest one


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, 0 where it is exact; ``float()`` gives the number."""

    value: float
    standard_error: float

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues of a kernel, or a quadrature of them.

    Attributes:
        values: Eigenvalues in ascending order, or the nodes of each quadrature: ``(repetitions, nodes)`` in float64.
        weights: How many eigenvalues each stands for, in the same shape; their sum is `size`.
        size: Number of eigenvalues, zeros included.
        tolerance: Up to this an eigenvalue is rounding, and counts as zero.
        method: ``exact`` or ``lanczos``.
        cost: What it took.
    """

    values: Tensor
    weights: Tensor
    size: int
    tolerance: float
    method: Literal["exact", "lanczos"]
    cost: Cost

    @property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue; of a quadrature bounds from inside, of which the second is close."""
        return float(self.values.min()), float(self.values.max())

    @property
    def condition(self) -> float:
        """The largest eigenvalue over the smallest, infinite where that is zero; of a quadrature a lower bound."""
        least, greatest = self.extremes
        return greatest / least if least > self.tolerance else inf

    @property
    def effective_rank(self) -> Estimate:
        """Exponential of the entropy of the eigenvalues over their sum (Roy, Vetterli, EUSIPCO 2007)."""

        def effective(values: Tensor, weights: Tensor) -> Tensor:
            shares = values.clamp_min(0) / (values.clamp_min(0) @ weights)
            return (-torch.xlogy(shares, shares) @ weights).exp()

        return self._of(effective)

    def log_determinant(self, ridge: float = 0.0) -> Estimate:
        """``log det (K + ridge I)``; of a singular kernel without a ridge minus infinity, of a quadrature refused."""
        if not ridge > 0 and (ridge < 0 or self.method == "lanczos"):
            raise InvalidInput(f"ridge is {ridge!r}; allowed: a positive number, and 0 for an exact spectrum")
        return self._of(lambda values, w: (torch.where(values > self.tolerance, values, 0.0) + ridge).log() @ w)

    def density(self, points: int = 200, width: float = 0.1) -> tuple[Tensor, Tensor]:
        """Places on the axis log10(eigenvalue), and the density there of those above the tolerance, as Gaussians."""
        above = self.values > self.tolerance
        logs, weights = self.values[above].log10(), self.weights[above] / (self.size * len(self.values))
        if not len(logs):
            raise InvalidInput("a kernel of zeros has no density")
        axis = torch.linspace(float(logs.min()) - 3 * width, float(logs.max()) + 3 * width, points, dtype=torch.float64)
        return axis, torch.distributions.Normal(logs, width).log_prob(axis[:, None]).exp() @ weights

    def plot(self) -> "LayerChart":
        """Eigenvalues by rank; of a quadrature their density."""
        import pandas as pd

        from pathex import figures

        if self.method == "exact":
            values = self.values[0].flip(0).tolist()
            table = pd.DataFrame({"series": "kernel", "rank": range(1, len(values) + 1), "mean": values})
            return figures.spectrum(table)
        axis, density = self.density()
        table = pd.DataFrame({"series": "kernel", "eigenvalue": (10**axis).tolist(), "mean": density.tolist()})
        return figures.curves(table, "eigenvalue", x_title="eigenvalue", y_title="density of log10", log="x")

    def _of(self, f: Callable[[Tensor, Tensor], Tensor]) -> Estimate:
        """A function of all values and weights; its error by leaving out one repetition after another."""
        count = len(self.values)
        whole = float(f(self.values.flatten(), self.weights.flatten() / count))
        others = [[i for i in range(count) if i != out] for out in range(count) if count > 1]
        left = [f(self.values[i].flatten(), self.weights[i].flatten() / (count - 1)) for i in others]
        return Estimate(whole, half_width(count) * float(torch.stack(left).std()) * (count - 1) if left else 0.0)


def spectrum(kernel: Kernel) -> Spectrum:
    """All eigenvalues of a kernel that is ``full`` or ``trace``, of one set of images."""
    started, size = time.perf_counter(), len(symmetric(kernel))
    values = torch.linalg.eigvalsh(symmetric(kernel))[None]
    tolerance = _ROUNDING * torch.finfo(kernel.dtype).eps * float(values.max())
    cost = Cost(0.0, 3 * kernel.values.nbytes, time.perf_counter() - started)
    return Spectrum(values, torch.ones_like(values), size, tolerance, "exact", cost)


def lanczos(
    model: nn.Module,
    x: Any,
    mask: Tensors | None = None,
    *,
    steps: int = 20,
    repetitions: int = 5,
    seed: int = 0,
    **options: Unpack[Options],
) -> Spectrum:
    """The spectrum of the full kernel from products with it, where the kernel itself is too large.

    Each repetition is a Lanczos quadrature from a random vector, by curvlinops (Papyan, JMLR 2020). Standard
    errors are jackknife's over the repetitions, widened by Student's t: two of them are a 95 % interval.

    Args:
        model: As for `pathex.ntk.kernel`.
        x: Images.
        mask: What is kept.
        steps: Nodes of a quadrature, and products that it takes, fewer than the kernel has columns.
        repetitions: Number of quadratures.
        seed: Seed of the random vectors.
        options: ``batch_norm``, ``output`` and ``memory``, see `pathex.ntk`.

    Returns:
        The spectrum.
    """
    check_integer("repetitions", repetitions, 2)
    operator = Operator(network := network_of(model, x, mask, options))
    size = operator.shape[0]
    check_integer("steps", steps, 2, size - 1)
    started, fast_lanczos = time.perf_counter(), curvlinops().papyan2020traces.spectrum.fast_lanczos

    def quadrature() -> Tensor:
        values, vectors = fast_lanczos(operator, steps)
        return torch.stack([values, size * vectors[0].square()])

    values, weights = repeated(quadrature, repetitions, seed).unbind(1)
    tolerance = _ROUNDING * torch.finfo(network.dtype).eps * float(values.max())
    passes = repetitions * steps * (1 + PUSHED) * network.images
    cost = Cost(passes, products_bytes(network), time.perf_counter() - started)
    return Spectrum(values, weights, size, tolerance, "lanczos", cost)

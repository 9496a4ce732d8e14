"""The kernel as an operator, and estimates that curvlinops makes from products with it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from types import ModuleType
from typing import Any, ClassVar

import torch
from scipy.special import stdtrit
from torch import Tensor

from pathex.errors import InvalidInput, PathexError, check_integer, refusing
from pathex.ntk.network import Network

# Names of the library's functions, and products of one repetition.
_ESTIMATES = {"hutchinson": ("hutchinson_trace", 1), "hutch++": ("hutchpp_trace", 12), "xtrace": ("xtrace", 12)}
_LOW_RANK = "the kernel has too low a rank for this estimate ({}); allowed: hutchinson, or the exact method"


def curvlinops() -> ModuleType:
    """The library, or one line that says how to get it."""
    try:
        with warnings.catch_warnings():  # its own dependencies warn of each other
            warnings.simplefilter("ignore")
            import curvlinops as found
            import curvlinops.papyan2020traces.spectrum
    except ImportError as error:
        raise InvalidInput(f"estimates of the kernel need curvlinops: pip install 'pathex[ntk]' ({error})") from error
    return found


@dataclass(frozen=True)
class Operator:
    """The full kernel as a linear operator that curvlinops can use, in float64 on the CPU."""

    network: Network
    device: ClassVar = torch.device("cpu")
    dtype: ClassVar = torch.float64

    @property
    def shape(self) -> tuple[int, int]:
        """Columns are outputs of images, image after image."""
        size = self.network.images * self.network.outputs
        return size, size

    def __matmul__(self, vectors: Tensor) -> Tensor:
        columns = [self._product(column) for column in (vectors[:, None] if vectors.dim() == 1 else vectors).T]
        return torch.stack(columns, 1).view(vectors.shape)

    def _product(self, column: Tensor) -> Tensor:
        vector = column.view(self.network.images, self.network.outputs).to(self.network.x.device)
        return self.network.pushed(self.network.pulled(vector)).flatten().to(column)


def repeated(draw: Callable[[], Tensor], repetitions: int, seed: int) -> Tensor:
    """Independent draws of what a library draws from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(check_integer("seed", seed, 0))
        with refusing(_LOW_RANK, torch.linalg.LinAlgError, raising=PathexError):
            found = torch.stack([draw() for _ in range(repetitions)])
    if not found.isfinite().all():
        raise PathexError(_LOW_RANK.format("not finite"))
    return found


def half_width(count: int) -> float:
    """What to multiply the deviation of some samples with, so that twice that is a 95 % interval of their mean."""
    return float(stdtrit(count - 1, 0.975)) / 2 / sqrt(count)


def estimated(operator: Any, method: str, products: int, seed: int) -> tuple[float, float]:
    """The trace of an operator (a matrix too) and its standard error, from independent repetitions."""
    check_integer("products", products, 24)
    name, together = _ESTIMATES[method]
    estimate = getattr(curvlinops(), name)
    if products >= operator.shape[0]:
        raise InvalidInput(
            f"products={products} are no fewer than the {operator.shape[0]} columns of the kernel (images times "
            "outputs); allowed: fewer, or method='exact', which then costs less"
        )
    samples = repeated(lambda: estimate(operator, together), products // together, seed)
    return float(samples.mean()), half_width(len(samples)) * float(samples.std())

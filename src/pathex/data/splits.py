"""Labelled images that can be fetched by number."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Split(Protocol):
    """Labelled images that can be fetched by number."""

    @property
    def labels(self) -> Tensor:
        """Class of each image, int64 (N,)."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """Images of some numbers (B,), uint8 (B, C, H, W)."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Labelled images in memory.

    Attributes:
        data: Images, uint8 (N, C, H, W).
        labels: Class of each image, int64 (N,).
    """

    data: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Images of some numbers (B,), uint8 (B, C, H, W), on the device of ``data``."""
        return self.data[indices.to(self.data.device)]

    def subset(self, rows: Tensor, labels: Tensor) -> "ArraySplit":
        """The images of some numbers (M,), under other labels (M,)."""
        return ArraySplit(self.data[rows], labels)

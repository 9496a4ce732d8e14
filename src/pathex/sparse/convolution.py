"""A convolution of kept weights whose values are given with each call."""

from typing import Any

from torch import Tensor

from pathex.sparse.pending import Pending
from pathex.sparse.planes import Window
from pathex.sparse.team import Team
from pathex.sparse.unit import Unit

Pair = tuple[int, int]


class KeptConvolution:
    """The kernels of a convolution in two dimensions.

    Args:
        kept: Which weights are kept, bool ``(outputs, inputs / groups, height, width)``.
        stride: As of `torch.nn.functional.conv2d`.
        dilation: As there.
        padding: As there.
        groups: As there.
        size: Rows and columns of images.
        team: Who carries out kernels.

    Raises:
        UnsupportedOperation: If images are too large.

    Attributes:
        places: Where the kept weights lie in the flat dense one ``(kept,)``.
    """

    def __init__(
        self, kept: Tensor, stride: Pair, dilation: Pair, padding: Pair, groups: int, size: Pair, team: Team
    ) -> None:
        window = Window((kept.shape[2], kept.shape[3]), stride, dilation, (*padding, *padding))
        self._kernel = Unit(kept, window, groups), team
        self._kernel[0].shape(*size)
        self.places = kept.flatten().nonzero().flatten()

    def __call__(self, x: Any, values: Tensor, bias: Tensor | None = None, moments: bool = False) -> Pending:
        """The result for images ``(N, C, H, W)``, or what waits to be read, with values ``(kept,)``; differentiable."""
        team = self._kernel[1]
        y, *found = Pending.of(team, x).convolved(self._kernel, moments, values, bias)
        return Pending(team, x.shape[0], y, (found[0], found[1]) if moments else None, "", 2)

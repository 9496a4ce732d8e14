"""What a mask leaves dead: layers, channels and kept weights on no path from input to output."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from pathex import paths
from pathex.errors import LayerCollapse, PathexWarning, UnsupportedOperation, listed
from pathex.graph import Images, Output, untouched
from pathex.masks import Mask, all_kept
from pathex.paths import Connectivity, connectivity


@dataclass(frozen=True)
class PruneReport:
    """What died.

    Attributes:
        dead_layers: Weights of which nothing lies on a path from input to output any more, by name.
        dead_channels: Name to the indices of the output channels of which no weight lies on a path.
        disconnected: Kept weights on no path; None where the network has operations that paths cannot be read
            through, and then dead layers are those without kept weights.
        unused: Weights that lay on no path before pruning.
        off_path: Prunable weights that the network uses, but on no path from its input (position biases, constant
            queries), and what `prune` left as it is: it leaves them out of the mask, or dense in it where the forward
            pass does not use them. Methods that read weights alone can be given them as ``ignore=``.
        channels: Name to the number of its output channels.
        dead_outputs: Indices of outputs, such as classes, that depend on the input no more.
    """

    dead_layers: list[str]
    dead_channels: dict[str, list[int]]
    disconnected: int | None
    unused: list[str]
    off_path: list[str] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    dead_outputs: list[int] = field(default_factory=list)

    def asdict(self) -> dict[str, Any]:
        """The report as plain data, which JSON can hold."""
        return asdict(self)


def examine(
    model: nn.Module,
    mask: Mask,
    images: Images,
    *,
    start: Mask | None = None,
    output: Output = None,
    off_path: Sequence[str] = (),
) -> PruneReport:
    """What a mask leaves dead in a network, which is left as it is.

    Args:
        model: The network.
        mask: What is kept.
        images: Images ``(N, ...)`` on the model's device; the first is used, for its shape.
        start: The mask before pruning; what was dead then is not counted again. None keeps all that ``mask`` names.
        output: Which of several outputs counts.
        off_path: Weights beside the mask that are known to lie on no path.

    Returns:
        The report. Where paths cannot be read, a `pathex.errors.PathexWarning` says so.
    """
    mask.check(model)
    after = _connected(model, mask, images, output)
    if after is None:
        return PruneReport([name for name, count in mask.counts().items() if not count.kept], {}, None, [])
    before = None
    if after.dead_layers or after.dead_outputs:  # what was dead before is dead still
        before = _connected(model, start or Mask(all_kept(mask)), images, output)
    unused, constant = ([], []) if before is None else (before.dead_layers, before.dead_outputs)
    dead = [name for name in after.dead_layers if name not in unused]
    outputs = [number for number in after.dead_outputs if number not in constant]
    off = [*off_path, *paths.off_path(model, list(mask), images, output=output)]
    return PruneReport(dead, after.dead_channels, after.disconnected, unused, off, after.channels, outputs)


def _connected(model: nn.Module, mask: Mask, images: Images, output: Output) -> Connectivity | None:
    with untouched(model):
        try:
            return connectivity(model, mask, images[:1], output=output)
        except UnsupportedOperation as error:
            warnings.warn(
                f"dead channels and disconnected weights are not counted: {error}", PathexWarning, stacklevel=3
            )
            return None


def warn_of_collapse(report: PruneReport, strict: bool) -> None:
    """Say that layers or outputs died; with ``strict``, as an error."""
    if report.dead_layers:
        number = len(report.dead_layers)
        message = f"{number} layer{'s' * (number > 1)} lost every weight on every path: {listed(report.dead_layers)}"
    elif report.dead_outputs:
        outputs = f"output{'s' * (len(report.dead_outputs) > 1)} {listed(list(map(str, report.dead_outputs)))}"
        message = f"no path is left to {outputs}; min_per_output= keeps weights of each"
    else:
        return
    if strict:
        raise LayerCollapse(message)
    warnings.warn(LayerCollapse(message), stacklevel=3)

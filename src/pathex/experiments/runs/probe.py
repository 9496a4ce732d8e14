"""What training does to the kernel of a network, on the same images in every run of a data set."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pathex import ntk, paths, sparse
from pathex.data import PruningSet
from pathex.errors import UnsupportedOperation
from pathex.graph import Tensors, copied
from pathex.masks import own_module


class Probe:
    """Receives a network after its epochs, as `pathex.train.Observe`.

    Args:
        images: What the kernel is of.
        every: After how many epochs, and after the last one.
        last: Which that is.
        mask: What is kept now; None keeps everything.
    """

    def __init__(self, images: PruningSet, every: int, last: int, mask: Callable[[], Tensors | None]) -> None:
        self._images, self._every, self._last, self._mask = images, every, last, mask
        self._start: Tensor | None = None

    def begin(self, model: nn.Module) -> None:
        """Note the gates of the network before its first step."""
        self._start = self._gates(_dense(model))

    def __call__(self, model: nn.Module, epoch: int) -> Mapping[str, float]:
        """The numbers of an epoch: of the kernel summed over outputs, BatchNorm calibrated, and of gates."""
        if epoch % self._every and epoch != self._last:
            return {}
        network = _dense(model)
        x, y = self._images.images, self._images.labels
        kernel = ntk.kernel(network, x, self._mask(), form="trace", batch_norm="calibrated")
        spectrum = ntk.spectrum(kernel)
        found = {
            "ntk_trace": kernel.trace,
            "ntk_largest": spectrum.extremes[1],
            "ntk_effective_rank": float(spectrum.effective_rank),
            "ntk_alignment": ntk.alignment(kernel, y),
        }
        gates = self._gates(network)
        if gates is not None and self._start is not None and gates.shape == self._start.shape:
            found["gates_changed"] = float((gates != self._start).double().mean())
        return found

    def _gates(self, network: nn.Module) -> Tensor | None:
        """Which gates are open, of all images; None of a network that has none or cannot be read."""
        try:
            tape = paths.record(network, self._images.images).tape
        except UnsupportedOperation:
            return None
        gates = [each.open.flatten().bool() for each in tape.values() if isinstance(each, paths.Gate)]
        return torch.cat(gates) if gates else None


def _dense(model: nn.Module) -> nn.Module:
    """A network on the CPU with its weights as they are, in evaluation mode."""
    own = own_module(model)
    network = sparse.restore(own) if sparse.kept_layers(own) else copied(own)
    return network.cpu().eval()

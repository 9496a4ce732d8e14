"""A network for inference on a CPU that computes only kept weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput
from pathex.sparse import kernels
from pathex.sparse.choice import Choice, is_dense
from pathex.sparse.layers import Reading
from pathex.sparse.program import Program
from pathex.sparse.team import Team


class CompiledNetwork(nn.Module):
    """What `pathex.compile` makes: a network in evaluation mode, without parameters, for float32 images on the CPU.

    It may be called by several Python threads at once; each call has memory of its own.

    Attributes:
        choice: How each layer is computed.
    """

    def __init__(self, reading: Reading, choice: Choice, team: Team) -> None:
        super().__init__()
        choice.check([layer.name for layer in reading.layers.values()])
        self.training = False
        self.choice = choice
        self._reading, self._team, self._lock = reading, team, Lock()
        self._idle: dict[int | None, list[Program]] = {}
        self._shape = tuple(reading.graph.inputs[0].shape or ())[1:]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of any number of images ``(N, C, H, W)``."""
        if x.shape[1:] != self._shape or x.dtype != torch.float32 or x.device.type != "cpu" or not len(x):
            found = f"{tuple(x.shape)} {x.dtype} on {x.device.type}"
            raise InvalidInput(
                f"images must be (N, {', '.join(map(str, self._shape))}) float32 on the cpu, got {found}"
            )
        parts = list(self._parts(len(x)))
        out = None
        with torch.inference_mode():
            for begin, end, images in parts:
                chunk, count = x[begin:end], end - begin
                if images is not None and count < images:
                    chunk = torch.cat([chunk, chunk[-1:].expand(images - count, *chunk.shape[1:])])
                with self._program(images) as program:
                    found = program(chunk)[:count]
                    if out is None:
                        with torch.inference_mode(False):
                            out = torch.empty((len(x), *found.shape[1:]), dtype=found.dtype)
                    out[begin:end].copy_(found)
        assert out is not None
        return out

    def train(self, mode: bool = True) -> "CompiledNetwork":
        """Stay in evaluation mode: `InvalidInput` if asked to train."""
        if mode:
            raise InvalidInput("CompiledNetwork is for inference: train the network that it was compiled from")
        return self

    def plan(self) -> str:
        """A table: shape and density of each layer, and how it is computed, alone and in a batch."""
        lines = [f"{'layer':<32} {'shape':<20} {'density':>7}  one image      batch"]
        for layer in self._reading.layers.values():
            single, batch = (of[layer.name] if of else "" for of in (self.choice.single, self.choice.batch))
            shape = "x".join(map(str, layer.weight.shape))
            lines.append(f"{layer.name:<32} {shape:<20} {layer.density:7.4f}  {single:<14} {batch}".rstrip())
        return "\n".join(lines)

    def extra_repr(self) -> str:
        """The plan."""
        return self.plan()

    def _parts(self, count: int) -> Iterator[tuple[int, int, int | None]]:
        """Where the images of each pass begin and end, and how many its program takes."""
        choice, lanes = self.choice, kernels.LANES
        begin = 0
        if choice.batch is not None and (count >= lanes or count >= choice.filled_from):
            if is_dense(choice.batch):
                yield 0, count, None
                return
            while count - begin >= choice.filled_from:
                end = min(count, begin + lanes)
                yield begin, end, lanes
                begin = end
        if is_dense(choice.single) and begin < count:
            yield begin, count, None
            return
        for at in range(begin, count):
            yield at, at + 1, 1

    @contextmanager
    def _program(self, images: int | None) -> Iterator[Program]:
        """One that nobody else uses meanwhile."""
        with self._lock:
            idle = self._idle.setdefault(images, [])
            program = idle.pop() if idle else None
        program = program or Program(self._reading, self._choices(images), images, self._team)
        try:
            yield program
        finally:
            with self._lock:
                idle.append(program)

    def _choices(self, images: int | None) -> Mapping[str, str]:
        if images == 1 or self.choice.batch is None or (not is_dense(self.choice.batch) and images is None):
            return self.choice.single
        return self.choice.batch

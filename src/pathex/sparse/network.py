"""A network for inference on a CPU that computes only kept weights."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

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
        self._idle: dict[tuple[int, int | None], list[Program]] = {}
        self._shape = tuple(reading.graph.inputs[0].shape or ())[1:]

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledNetwork":
        """A copy with memory of its own: weights, which never change, and threads are shared."""
        memo |= {id(each): each for each in (self._reading, self._team)} | {id(self._lock): Lock(), id(self._idle): {}}
        made = CompiledNetwork.__new__(CompiledNetwork)
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of any number of images ``(N, C, H, W)``."""
        if x.shape[1:] != self._shape or x.dtype != torch.float32 or x.device.type != "cpu" or not len(x):
            found = f"{tuple(x.shape)} {x.dtype} on {x.device.type}"
            raise InvalidInput(
                f"images must be (N, {', '.join(map(str, self._shape))}) float32 on the cpu, got {found}"
            )
        out = None
        with torch.inference_mode():
            for begin, end, choices, images in self._parts(len(x)):
                chunk, count = x[begin:end], end - begin
                if images is not None and count < images:
                    chunk = torch.cat([chunk, chunk[-1:].expand(images - count, *chunk.shape[1:])])
                with self._program(choices, images) as program:
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

    def _parts(self, count: int) -> Iterator[tuple[int, int, Mapping[str, str], int | None]]:
        """Where the images of each pass begin and end, how its layers are computed, and how many images it takes."""
        single, batch, lanes = self.choice.single, self.choice.batch, kernels.LANES
        begin = 0
        if batch is not None and is_dense(batch) and count >= lanes:
            yield 0, count, batch, None
            return
        while batch is not None and not is_dense(batch) and count - begin >= min(lanes, self.choice.filled_from):
            yield begin, min(count, begin + lanes), batch, lanes
            begin += lanes
        if is_dense(single) and begin < count:
            yield begin, count, single, None
            return
        for at in range(begin, count):
            yield at, at + 1, single, 1

    @contextmanager
    def _program(self, choices: Mapping[str, str], images: int | None) -> Iterator[Program]:
        """One that nobody else uses meanwhile."""
        with self._lock:
            idle = self._idle.setdefault((id(choices), images), [])
            program = idle.pop() if idle else None
        program = program or Program(self._reading, choices, images, self._team)
        try:
            yield program
        finally:
            with self._lock:
                idle.append(program)

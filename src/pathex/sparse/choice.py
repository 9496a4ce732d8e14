"""Which layers are computed by sparse kernels and which by torch: what is faster here, as measured."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from pathex.errors import check_integer
from pathex.sparse import kernels
from pathex.sparse.compiler import check_ways
from pathex.sparse.layers import Reading
from pathex.sparse.program import CHANNELS_LAST, DENSE, SPARSE, Program
from pathex.sparse.team import Team

_SECONDS = 0.5  # of each measurement
_MOST = 30  # runs
_PAYS = 0.8  # share of a sparse layer's time from which on a dense one among them may be faster


@dataclass(frozen=True)
class Choice:
    """How each layer is computed, by name: ``sparse``, ``dense`` or ``channels-last`` (dense in that layout).

    Attributes:
        single: Of one image.
        batch: Of as many images as a register has lanes; None: batches are computed image by image.
        filled_from: From how many remaining images on the lanes are filled up.
    """

    single: Mapping[str, str]
    batch: Mapping[str, str] | None = None
    filled_from: int = 5

    def check(self, names: Sequence[str]) -> None:
        """Refuse a choice that is not one for these layers (`InvalidInput`)."""
        check_integer("filled_from", self.filled_from)
        for ways in (self.single, self.single if self.batch is None else self.batch):
            check_ways(ways, names, (SPARSE, DENSE, CHANNELS_LAST))


def is_dense(choice: Mapping[str, str]) -> bool:
    """Whether no layer is sparse."""
    return SPARSE not in choice.values()


def measured(reading: Reading, x: Tensor, team: Team) -> Choice:
    """What is fastest for images like these, as many at a time."""
    single, alone = _fastest(reading, x[:1], team, 1)
    if len(x) < kernels.LANES:
        return Choice(single)
    batch, together = _fastest(reading, x, team, kernels.LANES)
    if alone * len(x) < together:
        return Choice(single)
    passes = math.ceil(together / len(x) * kernels.LANES / alone)
    return Choice(single, batch, max(1, min(kernels.LANES, passes)))


def _fastest(reading: Reading, x: Tensor, team: Team, images: int) -> tuple[Mapping[str, str], float]:
    """The fastest choice, and its seconds for all of x."""
    layers = list(reading.layers.values())
    candidates = [{layer.name: kind for layer in layers} for kind in (SPARSE, DENSE, CHANNELS_LAST)]
    times = []
    for choice in candidates:
        program = Program(reading, choice, images, team)
        runs = list(_repeated(partial(program.seconds, x[:images])))
        times.append({layer.name: min(run.get(layer.result, 0.0) for run in runs) for layer in layers})
    mixed = {}
    for layer in layers:
        sparse, *dense = (of[layer.name] for of in times)
        # Between kernels and torch values are copied.
        mixed[layer.name] = (DENSE, CHANNELS_LAST)[dense.index(min(dense))] if min(dense) < _PAYS * sparse else SPARSE
    candidates += [mixed] if mixed not in candidates else []
    programs = [Program(reading, choice, None if is_dense(choice) else images, team) for choice in candidates]
    turns = _repeated(lambda: [_seconds(program, x, images) for program in programs], _SECONDS * len(programs))
    totals = list(map(min, zip(*turns, strict=True)))
    best = totals.index(min(totals))
    return candidates[best], totals[best]


def _seconds(program: Program, x: Tensor, images: int) -> float:
    start = time.perf_counter()
    for chunk in x.split(images if program.images else len(x)):
        if len(chunk) == images or not program.images:
            program(chunk)
    return time.perf_counter() - start


def _repeated(work: Callable[[], Any], seconds: float = _SECONDS) -> Iterator[Any]:
    """What some work gives, again and again for a while, without the first time."""
    work()
    start = time.perf_counter()
    for run in range(_MOST):
        if run < 2 or time.perf_counter() - start < seconds:
            yield work()

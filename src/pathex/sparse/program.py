"""A network as a list of steps for a number of images: kernels for sparse layers, torch for everything else."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.graph import STRUCTURE, Node, words
from pathex.sparse import kernels
from pathex.sparse.geometry import Geometry
from pathex.sparse.layers import Layer, Reading, is_global_mean, pool_window
from pathex.sparse.memory import Memory, Store
from pathex.sparse.plan import Planes, Window
from pathex.sparse.team import Team

SPARSE, DENSE, CHANNELS_LAST = "sparse", "dense", "channels-last"
Values = dict[Node, Any]
_Step = Callable[[Values], None]
_CACHE = 16384  # bytes of a tile's input: half of the first cache
_PAYS = 16  # kept weights of an output in a block, from which on a sum in parts is faster
_RESHAPING = words("view _unsafe_view reshape")


class Program:
    """The steps, and the memory they work in: for one call at a time.

    Args:
        reading: The network.
        choices: For each layer by name `SPARSE`, `DENSE` or `CHANNELS_LAST`.
        images: How many images a call gets: 1 or `kernels.LANES`; None for any number, then no layer is sparse.
        team: The threads that carry out kernels.
    """

    def __init__(self, reading: Reading, choices: Mapping[str, str], images: int | None, team: Team) -> None:
        self.reading, self.choices, self.images, self._team = reading, choices, images, team
        self._lanes = images or 1
        self._vector = 1 if self._lanes > 1 else kernels.LANES
        self._static: Values = {}
        self._planes: dict[Node, tuple[Planes, Memory]] = {}
        self._rows: dict[Node, tuple[int, int]] = {}  # address of a matrix of features, and floats between them
        self._arrays: list[Any] = []  # what steps have addresses of
        self._table: list[Any] = []
        self._steps: list[tuple[Node, _Step | int]] = []  # by the node that they are for; a number is a kernel's step
        self._store = Store(self._counted())
        self._geometry = Geometry(reading, self._is_sparse)
        for node in reading.nodes:
            if reading.same(node) is node:
                self._visit(node)
        self.table = np.array(self._table, kernels.STEP)
        self.floats = self._store.floats

    def __call__(self, x: Tensor) -> Any:
        """The value of the output: it holds until the next call."""
        values = {**self._static, self.reading.graph.inputs[0]: x}
        at = 0
        while at < len(self._steps):
            step = self._steps[at][1]
            if isinstance(step, int):
                end = at + 1
                while end < len(self._steps) and isinstance(self._steps[end][1], int):
                    end += 1
                self._team.run(self.table, step, step + end - at)
                at = end
            else:
                step(values)
                at += 1
        return values[self.reading.same(self.reading.graph.output)]

    def seconds(self, x: Tensor) -> dict[Node, float]:
        """Carry it out, and tell the time of the steps of each node."""
        values = {**self._static, self.reading.graph.inputs[0]: x}
        found: dict[Node, float] = {}
        for node, step in self._steps:
            start = time.perf_counter()
            if isinstance(step, int):
                self._team.run(self.table, step, step + 1)
            else:
                step(values)
            found[node] = found.get(node, 0.0) + time.perf_counter() - start
        return found

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _is_sparse(self, layer: Layer) -> bool:
        return self.choices[layer.name] == SPARSE

    def _inputs(self, node: Node) -> tuple[Node, ...]:
        """What a node, or the layer that ends in it, reads."""
        layer = self.reading.layers.get(node)
        sources = node.inputs if layer is None else filter(None, (layer.source, layer.residual))
        return tuple(dict.fromkeys(map(self.reading.same, sources)))

    def _counted(self) -> dict[Node, int]:
        uses = {self.reading.same(self.reading.graph.output): 1}
        for node in self.reading.nodes:
            if self.reading.same(node) is node:
                for source in self._inputs(node):
                    uses[source] = uses.get(source, 0) + 1
        return uses

    def _visit(self, node: Node) -> None:
        layer = self.reading.layers.get(node)
        source = self.reading.same(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
        window = pool_window(node) if source in self._planes else None
        if layer is not None and self._is_sparse(layer):
            self._multiply(layer) if layer.is_linear else self._convolve(layer)
        elif layer is not None:
            self._add(node, partial(_dense, node, layer, self.choices[layer.name] == CHANNELS_LAST))
        elif window is not None and source is not None:
            self._pool(node, source, window)
        elif source in self._planes and is_global_mean(node):
            self._mean(node, source)
        else:
            self._plain(node)
        done = self._store.read(self._inputs(node))
        last = [value for value in done if value not in self._static]
        if last and self._steps and not isinstance(self._steps[-1][1], int):
            self._add(node, partial(_forget, last))

    def _add(self, node: Node, step: _Step) -> None:
        self._steps.append((node, step))

    def _kernel(self, node: Node, kind: int, **fields: Any) -> None:
        row = np.zeros((), kernels.STEP)
        row["kind"], row["low"], row["high"], row["lanes"] = kind, -math.inf, math.inf, self._lanes
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                self._arrays.append(value)
                value = value.ctypes.data
            row[name] = value
        self._steps.append((node, len(self._table)))
        self._table.append(row)

    def _shape(self, node: Node) -> tuple[int, ...]:
        shape = node.shape or ()
        return (shape[0] // 2 * (self.images or 1), *shape[1:]) if node.batched else shape

    # -- memory --------------------------------------------------------------------------------------------------------

    def _new_planes(self, node: Node, form: tuple[int, int, int]) -> tuple[Planes, Memory]:
        """Planes for the value of a node."""
        planes = Planes.padded(form, self._geometry.pitch(node), self._geometry.pads(node), self._lanes, self._vector)
        memory = self._store.take(planes, planes.floats)
        self._store.hold(node, [memory])
        self._planes[node] = planes, memory
        return planes, memory

    def _planes_of(self, node: Node, owner: Node) -> tuple[Planes, Memory]:
        """The planes in which the value of a node lies, or is brought."""
        if node not in self._planes:
            planes, memory = self._new_planes(node, self._shape(node)[1:])  # type: ignore[arg-type]
            self._add(owner, partial(_bring, planes.view(memory.tensor), node, None))
        return self._planes[node]

    def _rows_of(self, node: Node, owner: Node) -> tuple[int, int]:
        """Where the last dimension of a node's value is the first one of a matrix, and what lies between its rows."""
        if node in self._rows:
            return self._rows[node]
        *before, features = self._shape(node)
        rows = math.prod(before)
        value = self._static.get(node)
        if isinstance(value, Tensor) and (matrix := _viewed(value, (rows, features))) is not None:
            if rows == 1 or matrix.stride(0) == 1:
                self._rows[node] = matrix.data_ptr(), matrix.stride(1)
                return self._rows[node]
        matrix, memory, size = self._new_rows(node, rows, features)
        self._add(owner, partial(_bring, matrix, node, (rows, features)))
        return self._rows[node]

    def _new_rows(self, node: Node, rows: int, features: int) -> tuple[Tensor, Memory, int]:
        size = -(-rows // kernels.LANES) * kernels.LANES
        memory = self._store.take(("rows", features, size), features * size)
        self._store.hold(node, [memory])
        self._rows[node] = memory.address, size
        return memory.tensor.as_strided((rows, features), (1, size)), memory, size

    # -- kernels -------------------------------------------------------------------------------------------------------

    def _split(
        self, node: Node, source: Node, window: Window, taps: tuple[Any, Any, Any]
    ) -> tuple[Planes, Memory, Any]:
        """Phases of the planes of a source, and where taps lie in them."""
        planes, memory = self._planes_of(source, node)
        phases, which = window.phases(*taps[1:])
        rows, pitch = self._shape(node)[2] + window.reach(0), self._geometry.pitch(node)
        form = (planes.channels * len(phases), rows, pitch)
        split = Planes.padded(form, pitch, (0, 0, 0, window.reach(1)), self._lanes, self._vector)
        # What is never written there depends on all of this.
        pairs = np.unique(taps[0] * len(phases) + which).astype(np.int32)
        key = (split, window.stride, window.pads[:2], phases.tobytes(), planes.height, planes.width)
        target = self._store.take(key, split.floats)
        self._kernel(
            node, kernels.SPLIT, x=memory.address + 4 * planes.lead * self._lanes, y=target.address,
            source_plane=planes.size * self._lanes, plane=split.size * self._lanes, outputs=len(pairs), pairs=pairs,
            height=planes.height, width=planes.width, source_pitch=planes.pitch, pitch=pitch, rows=rows,
            stride=window.stride[0], across=window.stride[1], top=window.pads[0], left=window.pads[1], phases=phases,
            phase_count=len(phases),
        )  # fmt: skip
        return split, target, window.phase_offsets(split, len(phases), which, taps)

    def _convolve(self, layer: Layer) -> None:
        node, window, plan, lanes = layer.result, layer.window, layer.plan, self._lanes
        taps = plan.channels, plan.rows, plan.columns
        if window.direct:
            source, memory = self._planes_of(layer.source, node)
            offsets = window.offsets(source, *taps)
            split = None
        else:
            source, memory, offsets = self._split(node, layer.source, window, taps)
            split = memory
        residual, step = 0, 0
        if layer.residual is not None:
            other, place = self._planes_of(layer.residual, node)
            residual, step = place.address + 4 * other.lead * lanes, other.size * lanes
        outputs, *sides = self._shape(node)[1:]
        planes, target = self._new_planes(node, (outputs, *sides))  # type: ignore[arg-type]
        self._static[node] = planes.view(target.tensor)
        place = target.address + 4 * planes.lead * lanes
        tiles = _tiles(planes.length)
        holes = planes.holes(tiles, kernels.LANES) if any(self._geometry.pads(node)) else _no_holes(tiles)
        to = place, planes.size * lanes
        self._sum(layer, (memory.address, offsets), to, (residual, step), planes.length, holes)
        if split is not None:
            self._store.give_back(split)

    def _multiply(self, layer: Layer) -> None:
        node, plan = layer.result, layer.plan
        x, step = self._rows_of(layer.source, node)
        residual = (0, 0) if layer.residual is None else self._rows_of(layer.residual, node)
        *before, outputs = self._shape(node)
        rows = math.prod(before)
        matrix, memory, size = self._new_rows(node, rows, outputs)
        self._static[node] = matrix.view(*before, outputs)
        offsets = (plan.channels * step).astype(np.int32)
        holes = _no_holes(_tiles(rows))
        self._sum(layer, (x, offsets), (memory.address, size), residual, rows, holes, lanes=1)

    def _sum(
        self, layer: Layer, source: tuple[int, Any], target: tuple[int, int], residual: tuple[int, int],
        length: int, holes: tuple[Any, Any], **fields: Any,
    ) -> None:  # fmt: skip
        """Sums over blocks of input channels whose part of a tile stays in the first cache."""
        (x, offsets), (y, plane), bias = source, target, layer.bias.numpy()
        blocks = _blocks(layer, offsets, length)
        for block, inside in enumerate(blocks):
            last = block == len(blocks) - 1
            starts, values = layer.plan.starts, layer.plan.values
            if len(blocks) > 1:
                starts = np.concatenate([[0], np.cumsum(inside)])[starts].astype(np.int32)
                values = values[inside]
            self._kernel(
                layer.result, kernels.CONVOLVE, x=x, offsets=offsets[inside], values=values, starts=starts,
                bias=bias if block == 0 else np.zeros_like(bias), outputs=len(bias), y=y, plane=plane,
                residual=residual[0] if block == 0 else y, residual_plane=residual[1] if block == 0 else plane,
                length=length, tiles=_tiles(length), holes=holes[0],
                hole_starts=holes[1] if last else np.zeros_like(holes[1]), low=layer.low if last else -math.inf,
                high=layer.high if last else math.inf, **fields,
            )  # fmt: skip

    def _pool(self, node: Node, source: Node, window: Window) -> None:
        planes, memory = self._planes[source]
        channels, *sides = self._shape(node)[1:]
        target, place = self._new_planes(node, (channels, *sides))  # type: ignore[arg-type]
        self._static[node] = target.view(place.tensor)
        lanes = self._lanes
        self._kernel(
            node, kernels.MAXIMUM, x=memory.address + 4 * planes.lead * lanes, y=place.address + 4 * target.lead * lanes,
            outputs=channels, source_plane=planes.size * lanes, plane=target.size * lanes, height=planes.height,
            width=planes.width, source_pitch=planes.pitch, pitch=target.pitch, rows=sides[0], columns=sides[1],
            stride=window.stride[0], across=window.stride[1], top=window.pads[0], left=window.pads[1],
            tap_rows=window.kernel[0], tap_columns=window.kernel[1], dilation=window.dilation[0],
            dilation_across=window.dilation[1],
        )  # fmt: skip

    def _mean(self, node: Node, source: Node) -> None:
        planes, memory = self._planes_of(source, node)
        target, place = self._new_planes(node, (planes.channels, 1, 1))
        view = target.view(place.tensor)
        self._static[node] = view if len(node.shape or ()) == 4 else view[:, :, 0, 0]
        lanes = self._lanes
        self._kernel(
            node, kernels.MEAN, x=memory.address + 4 * planes.lead * lanes, y=place.address + 4 * target.lead * lanes,
            outputs=planes.channels, source_plane=planes.size * lanes, plane=target.size * lanes, height=planes.height,
            width=planes.width, source_pitch=planes.pitch,
        )  # fmt: skip

    # -- torch ---------------------------------------------------------------------------------------------------------

    def _plain(self, node: Node) -> None:
        """The operator of a node; a view of memory that stays where it is is taken once."""
        arguments = self._argument(list(node.args)), {k: self._argument(v) for k, v in node.kwargs.items()}
        call = partial(_call, node, *arguments)
        inputs = self._inputs(node)
        held = self._store.held(inputs)
        fixed = all(source in self._static for source in inputs)
        if node.op == "sym_size" and self.images is not None:
            source = node.args[0]
            value: Any = self._shape(source)[node.args[1]]
        elif fixed and (node.op in STRUCTURE or node.shape is None):
            value = _evaluated(call, self._static)
        else:
            value = None
        if value is not None and _lives_in(value, held):
            self._static[node] = value
        else:
            self._add(node, call)
        if node.op in STRUCTURE:
            self._store.hold(node, held)

    def _argument(self, value: Any) -> Any:
        """An argument whose constants have been computed."""
        if isinstance(value, Node):
            node = self.reading.same(value)
            known = node in self.reading.graph.inputs or node in self.reading.reached
            return node if known else self.reading.constant(node)
        if isinstance(value, (list, tuple)):
            return [self._argument(entry) for entry in value]
        return value


def _fetch(values: Values, argument: Any) -> Any:
    if isinstance(argument, Node):
        return values[argument]
    return [_fetch(values, entry) for entry in argument] if isinstance(argument, list) else argument


def _call(node: Node, args: list[Any], kwargs: dict[str, Any], values: Values) -> None:
    found = [_fetch(values, argument) for argument in args]
    if node.op in _RESHAPING and isinstance(found[1], list):
        values[node] = found[0].reshape(found[1])
    else:
        values[node] = node.target(*found, **{name: _fetch(values, value) for name, value in kwargs.items()})


def _evaluated(call: _Step, static: Values) -> Any:
    values = dict(static)
    call(values)
    return next(reversed(values.values()))


def _lives_in(value: Any, memories: list[Memory]) -> bool:
    """Whether a value is a number or a view of some memory."""
    if isinstance(value, (tuple, list)):
        return all(_lives_in(entry, memories) for entry in value)
    if isinstance(value, Tensor):
        return any(value.untyped_storage().data_ptr() == m.tensor.untyped_storage().data_ptr() for m in memories)
    return True


def _bring(view: Tensor, node: Node, form: tuple[int, int] | None, values: Values) -> None:
    value = values[node]
    view.copy_(value if form is None else value.reshape(form))


def _forget(nodes: list[Node], values: Values) -> None:
    for node in nodes:
        values.pop(node, None)


def _viewed(value: Tensor, form: tuple[int, ...]) -> Tensor | None:
    try:
        return value.view(form)
    except RuntimeError:
        return None


def _dense(node: Node, layer: Layer, channels_last: bool, values: Values) -> None:
    """A layer by torch, with what follows it."""
    x = values[layer.source]
    weight = layer.channels_last if channels_last and not layer.is_linear else layer.weight
    if layer.is_linear:
        y = F.linear(x, weight[:, :, 0, 0], layer.bias)
    else:
        top, left, bottom, right = layer.window.pads
        if (top, left) != (bottom, right):
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        window = layer.window
        y = F.conv2d(x, weight, layer.bias, window.stride, (top, left), window.dilation, layer.groups)
    if layer.residual is not None:
        y += values[layer.residual]
    if (layer.low, layer.high) == (0.0, math.inf):
        y.relu_()
    elif (layer.low, layer.high) != (-math.inf, math.inf):
        y.clamp_(layer.low, layer.high)
    values[node] = y


# -- geometry ----------------------------------------------------------------------------------------------------------


def _tiles(length: int) -> int:
    return -(-length // (kernels.LANES * kernels.REGISTERS))


def _blocks(layer: Layer, offsets: Any, length: int) -> list[Any]:
    """Which kept weights belong to each block of input channels, if blocks are worth sums in parts."""
    plan, channels = layer.plan, layer.weight.shape[1]
    if layer.groups > 1 or not plan.kept:
        return [slice(None)]
    tile = -(-length // _tiles(length))
    fullest = plan.channels == np.bincount(plan.channels).argmax()
    window = min(tile + int(np.ptp(offsets[fullest])), math.prod(layer.window.kernel) * tile) * channels
    count = max(1, min(4 * window // _CACHE, plan.kept // len(layer.bias) // _PAYS))
    edges = [channels * block // count for block in range(count + 1)]
    return [(plan.channels >= low) & (plan.channels < high) for low, high in itertools.pairwise(edges)]


def _no_holes(tiles: int) -> tuple[Any, Any]:
    return np.zeros(1, np.int32), np.zeros(tiles + 1, np.int32)

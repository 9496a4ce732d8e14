"""A network as a list of steps for a number of images: kernels for sparse layers, torch for everything else."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathex.graph import ACTIVATIONS, STRUCTURE, Node
from pathex.sparse import kernels
from pathex.sparse.calls import Step, Values, activate, attend, bring, call, dense, evaluated, forget, lives_in, viewed
from pathex.sparse.geometry import Geometry
from pathex.sparse.layers import Layer, Reading, is_global_mean, pool_window
from pathex.sparse.memory import Place, Store, between
from pathex.sparse.planes import Planes, Window, narrow
from pathex.sparse.team import Team
from pathex.sparse.tiling import blocks, tiles

SPARSE, DENSE, CHANNELS_LAST = "sparse", "dense", "channels-last"


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
        self._planes: dict[Node, Place] = {}
        self._rows: dict[Node, tuple[int, int]] = {}  # address of a matrix of features, and floats between them
        self._arrays: list[Any] = []  # what steps have addresses of
        self._table: list[Any] = []
        self._steps: list[tuple[Node, Step | int]] = []  # by the node that they are for; a number is a kernel's step
        self._store = Store(self._counted())
        self._geometry = Geometry(reading, self._is_sparse)
        if images is not None and images not in reading.shapes:
            plain = Program(reading, dict.fromkeys(choices, DENSE), None, team)
            reading.shapes[images] = plain.forms(torch.zeros(images, *(reading.graph.inputs[0].shape or ())[1:]))
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

    def forms(self, x: Tensor) -> dict[Node, tuple[int, ...]]:
        """The shapes of all values that are tensors."""
        values: Values = {self.reading.graph.inputs[0]: x}
        found = {self.reading.graph.inputs[0]: tuple(x.shape)}
        for node, step in self._steps:
            assert not isinstance(step, int)
            step(values)
            if isinstance(values.get(node), Tensor):
                found[node] = tuple(values[node].shape)
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
        place = None if source is None else self._planes.get(source)
        window = pool_window(node)
        if layer is not None and self._is_sparse(layer):
            self._multiply(layer) if layer.is_linear else self._convolve(layer)
        elif layer is not None:
            self._add(node, partial(dense, node, layer, self.choices[layer.name] == CHANNELS_LAST))
        elif window is not None and place is not None:
            self._pool(node, place, window)
        elif place is not None and is_global_mean(node):
            self._mean(node, place)
        elif node.op in ACTIVATIONS and source in self._static and len(self._store.held([source])) == 1:
            self._activate(node, source)
        else:
            self._plain(node)
        fixed = {*self._static, *self.reading.graph.inputs}
        done = [value for value in self._store.read(self._inputs(node)) if value not in fixed]
        if done:
            self._add(node, partial(forget, done))

    def _add(self, node: Node, step: Step) -> None:
        self._steps.append((node, step))

    def _shape(self, node: Node) -> tuple[int, ...]:
        return self.reading.shapes[self.images or 1][node]

    # -- memory --------------------------------------------------------------------------------------------------------

    def _new_planes(self, node: Node, form: Sequence[int]) -> Place:
        """Planes for the value of a node."""
        pitch, pads = self._geometry.pitch(node), self._geometry.pads(node)
        planes = Planes.padded(form, pitch, pads, self._lanes, self._vector)
        self._planes[node] = place = Place(planes, self._store.take(planes, planes.floats))
        self._store.hold(node, [place.memory])
        return place

    def _planes_of(self, node: Node, owner: Node) -> Place:
        """The planes in which the value of a node lies, or is brought."""
        if node not in self._planes:
            place = self._new_planes(node, self._shape(node)[1:])
            self._add(owner, partial(bring, place.view, node, None))
        return self._planes[node]

    def _rows_of(self, node: Node, owner: Node) -> tuple[int, int]:
        """Address of the matrix (features, all else) of a node's value, as it lies or is brought, and its pitch."""
        if node not in self._rows:
            *before, features = self._shape(node)
            form = math.prod(before), features
            matrix = viewed(self._static.get(node), form)
            if matrix is not None and (form[0] == 1 or matrix.stride(0) == 1):
                self._rows[node] = matrix.data_ptr(), matrix.stride(1)
            else:
                self._add(owner, partial(bring, self._new_rows(node, *form), node, form))
        return self._rows[node]

    def _new_rows(self, node: Node, rows: int, features: int) -> Tensor:
        pitch = -(-rows // kernels.LANES) * kernels.LANES
        memory = self._store.take(("rows", features, pitch), features * pitch)
        self._store.hold(node, [memory])
        self._rows[node] = memory.address, pitch
        return memory.tensor.as_strided((rows, features), (1, pitch))

    # -- kernels -------------------------------------------------------------------------------------------------------

    def _kernel(self, node: Node, kind: int, **fields: Any) -> None:
        row = np.zeros((), kernels.STEP)
        row["low"], row["high"] = -math.inf, math.inf
        for name, value in {"kind": kind, "lanes": self._lanes, **fields}.items():
            if isinstance(value, np.ndarray):
                self._arrays.append(value)
            row[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
        self._steps.append((node, len(self._table)))
        self._table.append(row)

    def _split(self, layer: Layer, source: Place) -> tuple[Place, Any]:
        """Phases of the planes that a layer with a stride reads, and where its taps lie in them."""
        node, window, plan = layer.result, layer.window, layer.plan
        phases, which = window.phases(plan)
        rows, pitch = self._shape(node)[2] + window.reach(0), self._geometry.pitch(node)
        form = source.planes.channels * len(phases), rows, pitch
        planes = Planes.padded(form, pitch, (0, 0, 0, window.reach(1)), self._lanes, self._vector)
        pairs = np.unique(plan.channels * len(phases) + which).astype(np.int32)
        # What is never written there depends on all of this.
        key = planes, window.stride, window.pads[:2], phases.tobytes(), source.planes.height, source.planes.width
        target = Place(planes, self._store.take(key, planes.floats))
        self._kernel(
            node, kernels.SPLIT, **between(source, target), outputs=len(pairs), rows=rows, stride=window.stride[0],
            across=window.stride[1], top=window.pads[0], left=window.pads[1], pairs=pairs, phases=phases,
            phase_count=len(phases),
        )  # fmt: skip
        return target, window.phase_offsets(planes, plan, len(phases), which)

    def _convolve(self, layer: Layer) -> None:
        node = layer.result
        source = self._planes_of(layer.source, node)
        residual = None if layer.residual is None else self._planes_of(layer.residual, node)
        direct = layer.window.stride == (1, 1)
        x, offsets = (source, layer.window.offsets(source.planes, layer.plan)) if direct else self._split(layer, source)
        y = self._new_planes(node, self._shape(node)[1:])
        self._static[node] = y.view
        length = y.planes.length
        holes = y.planes.holes(tiles(length), kernels.LANES) if any(self._geometry.pads(node)) else None
        added = (0, 0) if residual is None else (residual.address, residual.step)
        self._sum(layer, (x.memory.address, offsets), (y.address, y.step), added, length, holes)
        if not direct:
            self._store.give_back(x.memory)

    def _multiply(self, layer: Layer) -> None:
        node = layer.result
        x, pitch = self._rows_of(layer.source, node)
        residual = (0, 0) if layer.residual is None else self._rows_of(layer.residual, node)
        *before, outputs = self._shape(node)
        rows = math.prod(before)
        self._static[node] = self._new_rows(node, rows, outputs).view(*before, outputs)
        self._sum(layer, (x, layer.plan.channels * pitch), self._rows[node], residual, rows, None, lanes=1)

    def _sum(
        self, layer: Layer, source: tuple[int, Any], target: tuple[int, int], residual: tuple[int, int],
        length: int, holes: tuple[Any, Any] | None, **fields: Any,
    ) -> None:  # fmt: skip
        """Kept weights by blocks of input channels, each of which adds to what the one before has left."""
        x, (y, plane), plan = source[0], target, layer.plan
        none = np.zeros(tiles(length) + 1, np.int32)
        offsets, *gaps = (narrow(each, repr(layer.name)) for each in (source[1], *(holes or (none, none))))
        found = blocks(layer, offsets, length)
        for place, inside in enumerate(found):
            first, last = place == 0, place == len(found) - 1
            starts = np.concatenate([[0], np.cumsum(inside)])[plan.starts].astype(np.int32)
            self._kernel(
                layer.result, kernels.CONVOLVE, x=x, offsets=offsets[inside], values=plan.values[inside], starts=starts,
                bias=layer.bias.numpy() * first, outputs=len(layer.bias), y=y, plane=plane,
                residual=residual[0] if first else y, residual_plane=residual[1] if first else plane, length=length,
                tiles=tiles(length), holes=gaps[0], hole_starts=gaps[1] if last else none,
                low=layer.low if last else -math.inf, high=layer.high if last else math.inf, **fields,
            )  # fmt: skip

    def _pool(self, node: Node, source: Place, window: Window) -> None:
        target = self._new_planes(node, self._shape(node)[1:])
        self._static[node] = target.view
        self._kernel(
            node, kernels.MAXIMUM, **between(source, target), outputs=source.planes.channels,
            rows=target.planes.height, columns=target.planes.width, stride=window.stride[0], across=window.stride[1],
            top=window.pads[0], left=window.pads[1], tap_rows=window.kernel[0], tap_columns=window.kernel[1],
            dilation=window.dilation[0], dilation_across=window.dilation[1],
        )  # fmt: skip

    def _mean(self, node: Node, source: Place) -> None:
        target = self._new_planes(node, (source.planes.channels, 1, 1))
        self._static[node] = target.view if len(node.shape or ()) == 4 else target.view[:, :, 0, 0]
        self._kernel(node, kernels.MEAN, **between(source, target), outputs=source.planes.channels)

    def _activate(self, node: Node, source: Node) -> None:
        """An activation that keeps zero, of all that lies in a piece of memory."""
        (memory,), view = self._store.held([source]), self._static[source]
        target = self._store.take(memory.form, memory.floats)
        self._store.hold(node, [target])
        self._static[node] = target.tensor.as_strided(view.shape, view.stride(), view.storage_offset())
        if source in self._planes:
            self._planes[node] = Place(self._planes[source].planes, target)
        self._add(node, partial(activate, node, memory.used, target.used))

    # -- torch ---------------------------------------------------------------------------------------------------------

    def _plain(self, node: Node) -> None:
        """The operator of a node; a view of memory that stays where it is is taken once."""
        arguments = self._argument(list(node.args)), {k: self._argument(v) for k, v in node.kwargs.items()}
        features = self.reading.attention.get(node)
        step = partial(call, node, *arguments) if features is None else partial(attend, node, features, arguments[0])
        inputs = self._inputs(node)
        held = self._store.held(inputs)
        value = None
        if node.op == "sym_size" and self.images is not None:
            value = self._shape(self.reading.same(node.args[0]))[node.args[1]]
        elif all(source in self._static for source in inputs) and (
            node.op in STRUCTURE or not any(isinstance(self._static[source], Tensor) for source in inputs)
        ):
            value = evaluated(step, self._static)
        if value is not None and lives_in(value, held):
            self._static[node] = value
        else:
            self._add(node, step)
        if node.op in STRUCTURE:
            self._store.hold(node, held)

    def _argument(self, value: Any) -> Any:
        """An argument whose constants have been computed."""
        if isinstance(value, Node):
            node = self.reading.same(value)
            known = node in self.reading.graph.inputs or node in self.reading.reached
            return node if known else self.reading.constant(node)
        return [self._argument(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def meet(reading: Reading, image: Tensor, team: Team) -> bool:
    """Whether what becomes of an image depends on another one beside it: one without any number is found in it."""
    program = Program(reading, {layer.name: DENSE for layer in reading.layers.values()}, None, team)
    alone = program(image)
    try:
        beside = program(torch.cat([image, torch.full_like(image, math.nan)]))
    except Exception:  # of an operation that takes numbers only: not known
        return False
    return bool((beside[:1].isnan() & ~alone.isnan()).any())

"""Operators that are made of others, written out as those: attention, gated linear units, extremes, norms, quotients.

Rules then stand for few operators. What the network computes stays the same.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from pathex.graph import Graph, Node, arguments_of
from pathex.paths.recording import Rule, register

aten = torch.ops.aten
_TINY = 1e-24  # a root is read from here on: its slope is infinite at zero, where dead channels are


def lowered(graph: Graph) -> Graph:
    """The same network with composite operators on paths written out: another graph, made once."""
    if "lowered" not in graph.memo:
        graph.memo["lowered"] = _Lowering(graph).graph()
    return graph.memo["lowered"]


class _Lowering:
    def __init__(self, source: Graph) -> None:
        self.source = source
        self.nodes: list[Node] = []
        self.values: dict[Node, Any] = {}
        self.of: Node = source.output

    def graph(self) -> Graph:
        for node in self.source.nodes:
            self.of = node
            rule = _RULES.get(node.op) if node in self.source.carried else None
            self.values[node] = rule(self, node) if rule else self._same(node)
        inputs = [self.values[node] for node in self.source.inputs]
        return Graph(self.nodes, inputs, self.values[self.source.output], self.source.fixed_batch)

    def _same(self, node: Node) -> Any:
        if node.op == "getitem" and isinstance(self(node.args[0]), tuple):
            return self(node.args[0])[node.args[1]]
        if not node.args and not node.kwargs:
            return self._add(node)
        args, kwargs, arguments = map(self, (node.args, node.kwargs, node.arguments))
        return self._add(replace(node, args=args, kwargs=kwargs, arguments=arguments))

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def __call__(self, value: Any) -> Any:
        """What stands for an argument of the source, or nested ones."""
        return tree_map_only(Node, self.values.__getitem__, value)

    def call(self, target: Any, *args: Any, op: str | None = None, **kwargs: Any) -> Any:
        """A new node, its form found on tensors without values."""
        form = _form(target, args, kwargs)
        name = op or target.overloadpacket.__name__
        is_tensor = isinstance(form, Tensor)
        return self._add(
            replace(
                self.of,
                name=f"{self.of.name}.{len(self.nodes)}",
                op=name,
                target=target,
                args=args,
                kwargs=kwargs,
                arguments=arguments_of(target, args, kwargs),
                shape=tuple(form.shape) if is_tensor else None,
                dtype=form.dtype if is_tensor else None,
            )
        )


def _form(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    def empty(value: Any) -> Any:
        if isinstance(value, Node):
            return 2 if value.shape is None else torch.empty(value.shape, dtype=value.dtype, device="meta")
        return value.to("meta") if isinstance(value, Tensor) else value

    args, kwargs = tree_map(empty, (args, kwargs))
    return target(*args, **kwargs)


_RULES: dict[str, Rule] = {}
_lower = partial(register, _RULES)


# -- products ----------------------------------------------------------------------------------------------------------


@_lower("mul", "multiply")
def _product(of: _Lowering, node: Node) -> Any:
    a, b = of(node.args[0]), of(node.args[1])
    return of.call(aten.square.default, a) if a is b else of._same(node)


@_lower("sub")
def _difference(of: _Lowering, node: Node) -> Any:
    if node.function == "tanhshrink":
        return of.call(F.tanhshrink, of(node.args[0]), op="tanhshrink")
    return of._same(node)


@_lower("pow")
def _power(of: _Lowering, node: Node) -> Any:
    base, exponent = node.args[:2]
    if isinstance(base, Node):
        return of._same(node)
    return of.call(lambda x, base: torch.pow(base, x), of(exponent), base, op="pow")


@_lower("div", "divide", "true_divide")
def _quotient(of: _Lowering, node: Node) -> Any:
    divisor = node.args[1]
    if node.function == "softsign":
        return of.call(F.softsign, of(node.args[0]), op="softsign")
    if node.function == "local_response_norm":  # like every norm of a sample a recorded scale
        return of.call(aten.div.Tensor, of(node.args[0]), of.call(torch.detach, of(divisor), op="recorded"))
    if divisor not in of.source.carried or node.kwargs.get("rounding_mode") is not None:
        return of._same(node)
    reciprocal = of.call(aten.reciprocal.default, of(divisor))
    return of.call(aten.mul.Tensor, of(node.args[0]), reciprocal)


def _times(of: _Lowering, value: Any, factor: Any) -> Any:
    return value if factor == 1 else of.call(aten.mul.Tensor, value, factor)


@_lower("addmm", "addmv", "baddbmm")
def _added_product(of: _Lowering, node: Node) -> Any:
    added, a, b = map(of, node.args[:3])
    product = _times(of, of.call(aten.matmul.default, a, b), node["alpha"])
    if node["beta"] == 0:
        return product
    return of.call(aten.add.Tensor, product, _times(of, added, node["beta"]))


@_lower("addcmul", "addcdiv")
def _added_elementwise(of: _Lowering, node: Node) -> Any:
    added, a, b = map(of, node.args[:3])
    if node.op == "addcdiv":
        b = of.call(aten.reciprocal.default, b)
    return of.call(aten.add.Tensor, added, _times(of, of.call(aten.mul.Tensor, a, b), node["value"]))


@_lower("lerp")
def _interpolated(of: _Lowering, node: Node) -> Any:
    start, end, weight = map(of, node.args[:3])
    other = of.call(aten.rsub.Scalar, weight, 1) if isinstance(weight, Node) else 1 - weight
    parts = of.call(aten.mul.Tensor, start, other), of.call(aten.mul.Tensor, end, weight)
    return of.call(aten.add.Tensor, *parts)


@_lower("glu")
def _gated(of: _Lowering, node: Node) -> Any:
    value, dim = of(node["self"]), node["dim"]
    half = value.shape[dim] // 2
    parts = [of.call(aten.slice.Tensor, value, dim, start, start + half) for start in (0, half)]
    return of.call(aten.mul.Tensor, parts[0], of.call(aten.sigmoid.default, parts[1]))


@_lower("scaled_dot_product_attention")
def _attention(of: _Lowering, node: Node) -> Any:
    query, key, value, mask = (of(node[name]) for name in ("query", "key", "value", "attn_mask"))
    if node["enable_gqa"]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (of.call(aten.repeat_interleave.self_int, t, groups, -3) for t in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if node["scale"] is None else node["scale"]
    scaled = of.call(aten.mul.Tensor, query, scale)
    logits = of.call(aten.matmul.default, scaled, of.call(aten.transpose.int, key, -2, -1))
    if node["is_causal"]:
        ones = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
        logits = of.call(aten.masked_fill.Scalar, logits, _held(of, ~ones), -math.inf)
    if mask is not None and mask.dtype == torch.bool:
        logits = of.call(aten.masked_fill.Scalar, logits, of.call(aten.logical_not.default, mask), -math.inf)
    elif mask is not None:
        logits = of.call(aten.add.Tensor, logits, mask)
    return of.call(aten.matmul.default, of.call(aten.softmax.int, logits, -1), value)


def _held(of: _Lowering, tensor: Tensor) -> Node:
    node = Node(f"{of.of.name}.{len(of.nodes)}", "constant", tensor, shape=tuple(tensor.shape), dtype=tensor.dtype)
    return of._add(node)


# -- choices -----------------------------------------------------------------------------------------------------------


@_lower("maximum", "fmax", "minimum", "fmin")
def _larger(of: _Lowering, node: Node) -> Any:
    a, b = of(node.args[0]), of(node.args[1])
    decide = aten.gt.Tensor if node.op in ("maximum", "fmax") else aten.lt.Tensor
    return of.call(aten.where.self, of.call(decide, a, b), a, b)


@_lower("max", "min")
def _extreme(of: _Lowering, node: Node) -> Any:
    decide = aten.argmax.default if node.op == "max" else aten.argmin.default
    if len(node.args) > 1 and isinstance(node.args[1], Node):
        return _larger(of, replace(node, op=f"{node.op}imum"))
    value = of(node.args[0])
    if "dim" not in node.arguments:
        flat = of.call(aten.reshape.default, value, [-1])
        place = of.call(decide, flat, 0, True)
        return of.call(aten.reshape.default, of.call(aten.gather.default, flat, 0, place), [])
    dim = node["dim"]
    indices = of.call(decide, value, dim, True)
    values = of.call(aten.gather.default, value, dim, indices)
    if not node["keepdim"]:
        values, indices = (of.call(aten.squeeze.dim, each, dim) for each in (values, indices))
    return values, indices


@_lower("topk", "sort", "kthvalue")
def _sorted(of: _Lowering, node: Node) -> Any:
    value, dim = of(node["self"]), node["dim"]
    args, kwargs, target = of(node.args), of(node.kwargs), node.target
    order = of.call(lambda *args, **kwargs: target(*args, **kwargs)[1], *args, op="argsort", **kwargs)
    keeps = len(order.shape) == len(value.shape)
    places = order if keeps else of.call(aten.unsqueeze.default, order, dim)
    values = of.call(aten.gather.default, value, dim, places)
    return values if keeps else of.call(aten.squeeze.dim, values, dim), order


@_lower("linalg_vector_norm", "linalg_norm", "norm")
def _norm(of: _Lowering, node: Node) -> Any:
    order = node.arguments.get("ord", node.arguments.get("p"))
    order = 2 if order is None else order
    value = of(node["self"])
    several = node.op == "linalg_norm" and len(value.shape) > 1 and not isinstance(node["dim"], int)
    matrix = several and node["ord"] is not None and len(node["dim"] or value.shape) > 1
    if order not in (1, 2, "fro") or (matrix and order != "fro"):
        return of._same(node)
    dims = node.arguments.get("dim")
    dims = list(range(len(value.shape))) if not dims else [dims] if isinstance(dims, int) else list(dims)
    keepdim = node.arguments.get("keepdim", False)
    if order == 1:
        return of.call(aten.sum.dim_IntList, of.call(aten.abs.default, value), dims, keepdim)
    summed = of.call(aten.sum.dim_IntList, of.call(aten.square.default, value), dims, keepdim)
    return of.call(aten.sqrt.default, of.call(aten.clamp_min.default, summed, _TINY))


@_lower("var", "std", "var_mean", "std_mean")
def _variance(of: _Lowering, node: Node) -> Any:
    value, dims = of(node["self"]), node.arguments.get("dim")
    dims = list(range(len(value.shape))) if not dims else [dims] if isinstance(dims, int) else list(dims)
    if node.batched and any(dim % len(value.shape) == 0 for dim in dims):
        return of._same(node)  # images that depend on each other have no paths of their own
    correction = node.arguments.get("correction", node.arguments.get("unbiased", True))
    correction = 1 if correction is None else int(correction)
    keepdim = node.arguments.get("keepdim", False)
    count = math.prod(value.shape[dim] for dim in dims)
    mean = of.call(aten.mean.dim, value, dims, True)
    squares = of.call(aten.square.default, of.call(aten.sub.Tensor, value, mean))
    spread = of.call(aten.div.Tensor, of.call(aten.sum.dim_IntList, squares, dims, keepdim), max(count - correction, 1))
    if node.op.startswith("std"):
        spread = of.call(aten.sqrt.default, of.call(aten.clamp_min.default, spread, _TINY))
    if not node.op.endswith("mean"):
        return spread
    return spread, mean if keepdim else of.call(aten.mean.dim, value, dims)

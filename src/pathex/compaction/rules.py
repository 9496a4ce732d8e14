"""What operators do to channels: layers, elementwise functions, what moves entries, pools, products."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pathex.compaction.channels import Channels, Given, Reader, grouped_dims, rule
from pathex.compaction.labels import Value, first_of, settled, varies
from pathex.graph import ACTIVATIONS, FUNCTIONS, Node

_HEADS = ("num_heads", "heads", "n_heads", "nhead", "num_attention_heads")


# -- layers ------------------------------------------------------------------------------------------------------------


@rule("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
def _layer(of: Channels, node: Node) -> Any:
    x, weight = of(node.args[0]), node.args[1]
    if not isinstance(x, Value) or not isinstance(weight, Node) or weight.op != "parameter":
        return None
    name, linear, transposed = weight.target, node.op == "linear", "transpose" in node.op
    axis = x.labels.dim() - 1 if linear else x.labels.dim() - of.tensors[name].dim() + 1
    groups = 1 if linear else node["groups"]
    labels, unknown, number = _along(of, node, x, axis)
    places = [of.labels.along(name, dim, size) for dim, size in enumerate(of.tensors[name].shape[:2])]
    rows, columns = (places[1], places[0]) if transposed else places
    if groups == 1:
        of.labels.tie(columns, labels, f"read by {name}")
    else:  # a group goes as a whole
        first = labels.view(groups, -1)[:, :1]
        if transposed:
            of.labels.tie(columns, labels, f"read by {name}")
            rows = columns.view(groups, -1)[:, :1].expand(groups, places[1].numel()).flatten()
        of.labels.tie(labels.view(groups, -1), first, f"in groups of {name}")
        of.labels.tie(rows.view(groups, -1), first, f"in groups of {name}")
    bordered = not linear and (transposed or any(_entries(node["padding"])))
    bias = None if bordered else of.bias_for(node, name)
    reader = Reader(node, name, rows, labels, unknown, number, groups, transposed, bias)
    of.readers.append(reader)
    return _fed(of, node, reader, axis)


def _along(of: Channels, node: Node, x: Value, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, and what is known, of the channels that a layer reads; they stay where a channel has several labels."""
    others = [dim for dim in range(x.labels.dim()) if dim != axis]
    if any(varies(x.labels, dim) for dim in others):
        of.labels.pin(x.labels, f"read crosswise by {node.args[1]}")
        zero = torch.zeros(x.labels.shape[axis], dtype=torch.int64)
        return zero, zero == 0, zero.double()
    return tuple(first_of(each, *others).flatten() for each in (x.labels, x.unknown, x.number))  # type: ignore[return-value]


def _fed(of: Channels, node: Node, reader: Reader, axis: int) -> Value:
    """The result of a layer: constant where all that is kept reads constants."""
    weight, kept = of.tensors[reader.weight].double(), of.kept(reader.weight)
    reading = reader.by_unit(kept).any(3)
    open_ = reader.unknown | ((reader.number != 0) & (reader.bias is None))
    unknown = (reading & open_.view(reader.groups, 1, -1)).any(2).flatten()
    number = (reader.by_unit(weight * kept).sum(3) * reader.number.view(reader.groups, 1, -1)).sum(2).flatten()
    bias = of(node["bias"])
    if isinstance(bias, Given):
        number = number + bias.tensor
        of.matching(bias, reader.rows, f"a bias of {reader.weight}")
    elif bias is not None:
        unknown = torch.ones_like(unknown)
    form = [1] * len(node.shape)  # type: ignore[arg-type]
    form[axis] = -1
    return settled(*(each.view(form).expand(node.shape) for each in (reader.rows, unknown, number)))


def _entries(value: Any) -> Sequence[Any]:
    """Entries of an argument; of a padding by name none if it is ``valid``."""
    return [value != "valid"] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]


# -- elementwise -------------------------------------------------------------------------------------------------------

_SINGLE = "relu relu6 hardtanh clamp clip clamp_min clamp_max leaky_relu threshold neg negative prelu batch_norm"
_SEVERAL = (
    "add sub subtract rsub mul multiply div divide true_divide maximum minimum fmax fmin where masked_fill lerp addcmul "
    "addcdiv instance_norm"
)


_COMPARED = "gt ge lt le eq ne logical_not logical_and logical_or bitwise_not bitwise_and bitwise_or sign round floor ceil"


@rule(" ".join((_SINGLE, _SEVERAL, _COMPARED, *ACTIVATIONS, *FUNCTIONS)))
def _elementwise(of: Channels, node: Node) -> Any:
    operands = [of(source) for source in node.inputs]
    values = [each for each in operands if isinstance(each, Value)]
    if node.shape is None or any(isinstance(each, tuple) for each in operands):
        return None
    reason = f"{node.op} in {node.module[0] or 'the network'}"
    labels, unknown = values[0].labels, values[0].unknown
    for value in values[1:]:
        labels, unknown = _tied(of, labels, value.labels, reason), unknown | value.unknown
    labels = labels.expand(node.shape)
    for operand in operands:
        if isinstance(operand, Given):
            of.matching(_by_channel(node, operand), labels, reason)
    if node.op in ("mul", "multiply"):
        for value in values:
            unknown = unknown & (value.unknown | (value.number != 0))
    floats = all(source.dtype is not None and source.dtype.is_floating_point for source in (node, *node.inputs))
    if node.op == "instance_norm" or not floats or unknown.all():
        return settled(labels, torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.float64))
    return settled(labels, unknown, node.target(*of.numbers(node.args), **dict(node.kwargs)))


def _by_channel(node: Node, given: Given) -> Given:
    """A parameter of one entry a channel as it meets a value."""
    if node.op not in ("batch_norm", "instance_norm", "prelu") or given.tensor.numel() == 1:
        return given
    form = (-1, *[1] * (len(node.shape) - 2))  # type: ignore[arg-type]
    return Given(given.tensor.view(form), [labels.view(form) for labels in given.labelings])


def _tied(of: Channels, a: Tensor, b: Tensor, reason: str) -> Tensor:
    """The labels of a result whose operands have these labels."""
    dims = max(a.dim(), b.dim())
    a, b = (each.view((1,) * (dims - each.dim()) + each.shape) for each in (a, b))
    shape = torch.broadcast_shapes(a.shape, b.shape)
    lacking = [[d for d in range(dims) if each.shape[d] < shape[d]] for each in (a, b)]
    varied = [[d for d in range(dims) if varies(each, d)] for each in (a, b)]
    over_b, over_a = set(varied[0]) & set(lacking[1]), set(varied[1]) & set(lacking[0])
    if not over_a and not over_b:
        of.labels.tie(a, b, reason)
        return torch.where(b.expand(shape) == 0, 0, a.expand(shape)) if (b == 0).any() else a.expand(shape)
    # One of them is spread over the channels of the other.
    of.labels.pin(b if over_b else a, f"{reason}, for all channels")
    if over_a and over_b:
        of.labels.pin(b, reason)
        return torch.zeros((), dtype=torch.int64).expand(shape)
    return (a if over_b else b).expand(shape)


# -- what moves entries ------------------------------------------------------------------------------------------------


@rule("contiguous clone alias detach detach_copy positive to _to_copy type_as lift_fresh_copy dropout feature_dropout")
def _same(of: Channels, node: Node) -> Any:
    return of(node.args[0])


def _moved(of: Channels, node: Node, x: Value, move: Any) -> Any:
    parts = [move(each) for each in (x.labels, x.unknown, x.number)]
    if isinstance(parts[0], (tuple, list)):
        return tuple(settled(*each) for each in zip(*parts, strict=True))
    return settled(*parts)


@rule("view view_as reshape reshape_as flatten unflatten squeeze unsqueeze _unsafe_view ravel")
def _reshape(of: Channels, node: Node) -> Any:
    x = of(node.args[0])
    if not isinstance(x, Value) or node.shape is None:
        return None
    result = _moved(of, node, x, lambda each: each.reshape(node.shape))
    for old, new in grouped_dims(x.labels.shape, node.shape):
        if not any(varies(x.labels, dim) for dim in old) or len(new) == 1:
            if len(old) > 1 and len(new) == 1:
                of.risky.append((node, x.ids))
            continue
        of.risky.append((node, x.ids))
        if len(old) > 1:
            of.labels.pin(x.labels, f"{node.op} in {node.module[0]}")
        else:
            _split_in(of, node, result.labels, new)
    return result


def _split_in(of: Channels, node: Node, labels: Tensor, dims: list[int]) -> None:
    """A dimension of channels becomes several: what is removed must be the same for all but one of them."""
    module = of.modules.get(node.module[0], nn.Identity())
    sizes = {dim: [name for name in _HEADS if getattr(module, name, None) == labels.shape[dim]] for dim in dims}
    heads = next((dim for dim in dims if sizes[dim]), None)
    shrinks = dims[-1] if heads is None else heads
    rest = [dim for dim in range(labels.dim()) if dim != shrinks]
    for dim in dims:
        if dim != shrinks:
            of.labels.tie(labels, labels.narrow(dim, 0, 1), f"{node.op} in {node.module[0]}")
    if heads is not None:
        along = first_of(labels, *rest).flatten()
        of.heads.append((node.module[0], sizes[heads][0], along, labels.shape[dims[-1]] if dims[-1] != heads else 1))


@rule("permute transpose swapaxes swapdims movedim moveaxis t numpy_T mT adjoint expand expand_as broadcast_to repeat tile")
def _move(of: Channels, node: Node) -> Any:
    x = of(node.args[0])
    if not isinstance(x, Value):
        return None
    if node.op in ("expand", "expand_as", "broadcast_to"):
        return _moved(of, node, x, lambda each: each.expand(node.shape))
    return _moved(of, node, x, lambda each: node.target(each, *of.numbers(node.args[1:]), **of.keywords(node)))


@rule("getitem")
def _part(of: Channels, node: Node) -> Any:
    whole = of(node.args[0])
    return whole[node.args[1]] if isinstance(whole, tuple) else None


@rule("split chunk split_with_sizes tensor_split unbind select slice narrow")
def _cut(of: Channels, node: Node) -> Any:
    x = of(node.args[0])
    if not isinstance(x, Value):
        return None
    dim = node["dim"] % x.labels.dim()
    result = _moved(of, node, x, lambda each: node.target(each, *of.numbers(node.args[1:]), **of.keywords(node)))
    if not varies(x.labels, dim):
        return result
    reason = f"{node.op} in {node.module[0]}"
    of.risky.append((node, x.ids))
    if node.op in ("unbind", "select"):
        of.labels.tie(x.labels, x.labels.narrow(dim, 0, 1), reason)
    elif isinstance(result, tuple) and len({part.labels.shape for part in result}) == 1:
        for part in result[1:]:
            of.labels.tie(part.labels, result[0].labels, reason)
    elif isinstance(result, tuple) or result.labels.shape != x.labels.shape:
        of.labels.pin(x.labels, reason)
    return result


@rule("cat concat concatenate stack")
def _cat(of: Channels, node: Node) -> Any:
    operands = of(node.args[0])
    values = [each for each in operands if isinstance(each, Value)]
    if not values or node.shape is None or not all(isinstance(each, Value | Given) for each in operands):
        return None
    dim, reason = node["dim"] % len(node.shape), f"{node.op} in {node.module[0]}"
    if node.op == "stack":
        values = [_moved(of, node, each, lambda part: part.unsqueeze(dim)) for each in values]
        operands = [_unsqueezed(each, dim) if isinstance(each, Given) else values.pop(0) for each in operands]
        values = [each for each in operands if isinstance(each, Value)]
    reference = next((each for each in values if not varies(each.labels, dim)), None)
    if reference is None:
        operands = [each if isinstance(each, Value) else _pinned(of, each, reason) for each in operands]
    else:
        first = first_of(reference.labels, dim)
        operands = [_beside(of, each, first, dim, reason) for each in operands]
    return settled(*(torch.cat([getattr(each, part) for each in operands], dim) for part in _PARTS))


_PARTS = ("labels", "unknown", "number")


def _unsqueezed(given: Given, dim: int) -> Given:
    return Given(given.tensor.unsqueeze(dim), [labels.unsqueeze(dim) for labels in given.labelings])


def _pinned(of: Channels, given: Given, reason: str) -> Value:
    for labels in given.labelings:
        of.labels.pin(labels, reason)
    zero = torch.zeros((), dtype=torch.int64).expand(given.tensor.shape)
    return settled(zero, zero == 0, zero.double())


def _beside(of: Channels, operand: Any, first: Tensor, dim: int, reason: str) -> Value:
    """An operand that is joined along a dimension, where the labels of the first operand do not differ."""
    if isinstance(operand, Value):
        if varies(first, dim) or not any(varies(first, d) for d in range(first.dim())):
            return operand
        of.labels.tie(first_of(operand.labels, dim), first, reason)
        if varies(operand.labels, dim):
            of.labels.pin(operand.labels, reason)
        return operand
    labels = first.expand(operand.tensor.shape)
    of.matching(operand, labels, reason)
    return settled(labels, torch.zeros((), dtype=torch.bool), operand.tensor)


@rule("pad constant_pad_nd")
def _pad(of: Channels, node: Node) -> Any:
    x, widths = of(node.args[0]), node["pad"]
    if not isinstance(x, Value) or node.shape is None:
        return None
    dims = [x.labels.dim() - 1 - n // 2 for n, width in enumerate(widths) if width]
    if any(varies(x.labels, dim) for dim in dims):
        return None
    labels, unknown = (first_of(each, *dims).expand(node.shape) for each in (x.labels, x.unknown))
    return settled(labels, unknown, node.target(x.number, *of.numbers(node.args[1:]), **of.keywords(node)))


@rule("roll flip")
def _roll(of: Channels, node: Node) -> Any:
    x, dims = of(node.args[0]), node["dims"]
    fixed = isinstance(x, Value) and dims and not any(varies(x.labels, dim % x.labels.dim()) for dim in dims)
    return x if fixed else None


@rule("pixel_shuffle pixel_unshuffle")
def _pixels(of: Channels, node: Node) -> Any:
    x = of(node.args[0])
    if not isinstance(x, Value) or any(varies(x.labels, dim) for dim in (-1, -2)):
        return None
    labels, unknown, number = (node.target(each, node.args[1]) for each in (x.labels, x.unknown, x.number))
    first = first_of(labels, -1, -2).expand(labels.shape)
    of.labels.tie(labels, first, node.op)
    return settled(first, unknown, number)


@rule("glu")
def _glu(of: Channels, node: Node) -> Any:
    x = of(node.args[0])
    if not isinstance(x, Value):
        return None
    halves = [each.chunk(2, node["dim"]) for each in (x.labels, x.unknown)]
    of.labels.tie(*halves[0], "glu")
    return settled(halves[0][0].contiguous(), halves[1][0] | halves[1][1], node.target(x.number, node["dim"]))


# -- pools, sums, products ---------------------------------------------------------------------------------------------

_POOLS = "avg_pool max_pool adaptive_avg_pool adaptive_max_pool upsample_nearest upsample_linear upsample_bilinear "
_POOLS += "upsample_bicubic upsample_trilinear _upsample_nearest_exact _upsample_bilinear2d_aa _upsample_bicubic2d_aa"


@rule(" ".join(f"{op}{n}d" if "2d" not in op else op for op in _POOLS.split() for n in (1, 2, 3)))
def _pool(of: Channels, node: Node) -> Any:
    x = of(node.args[0])
    if not isinstance(x, Value) or node.shape is None:
        return None
    dims = [dim for dim in range(x.labels.dim()) if dim > 1 or (dim == 1 and x.labels.dim() == 2)]
    if any(varies(x.labels, dim) for dim in dims):
        return None
    labels, unknown, number = (first_of(each, *dims).expand(node.shape) for each in (x.labels, x.unknown, x.number))
    if node.op.startswith("avg_pool") and (any(_entries(node["padding"])) or node["ceil_mode"]):
        unknown = unknown | (number != 0)
    return settled(labels, unknown, number)


@rule("mean sum amax amin softmax _softmax log_softmax var std linalg_vector_norm")
def _over(of: Channels, node: Node) -> Any:
    x = of(node.args[0])
    over = node.arguments.get("dim")
    if not isinstance(x, Value) or node.shape is None or over is None or over == []:
        return None
    dims = [dim % x.labels.dim() for dim in (over if isinstance(over, (list, tuple)) else [over])]
    crossed = [dim for dim in dims if varies(x.labels, dim)]
    for dim in crossed:
        of.labels.tie(x.labels, x.labels.narrow(dim, 0, 1), f"{node.op} in {node.module[0]}")
    if "softmax" in node.op:
        return settled(x.labels, torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.float64))
    labels, number = (first_of(each, *dims) for each in (x.labels, x.number))
    unknown = (x.unknown | (x.number != 0)).any(dims, True) if crossed or node.op not in ("mean", "amax", "amin") else (
        first_of(x.unknown, *dims)
    )
    if not node.arguments.get("keepdim", False):
        labels, unknown, number = (_squeezed(each, dims) for each in (labels, unknown, number))
    return settled(labels, unknown, number)


def _squeezed(tensor: Tensor, dims: list[int]) -> Tensor:
    for dim in sorted(dims, reverse=True):
        tensor = tensor.select(dim, 0)
    return tensor


@rule("scaled_dot_product_attention")
def _attention(of: Channels, node: Node) -> Any:
    parts, reason = [of(each) for each in node.args[:3]], f"attention in {node.module[0]}"
    if not all(isinstance(each, Value) and each.labels.dim() == 4 for each in parts) or node["attn_mask"] is not None:
        return None
    query, key, value = (each.labels for each in parts)
    for each in (query, key, value):
        if any(varies(each, dim) for dim in (0, 2)):
            return None
        of.labels.tie(each, first_of(each, 3), reason)
    if query.shape[1] != value.shape[1]:
        return None
    for each in (query, key):
        of.labels.tie(first_of(each, 0, 2, 3), first_of(value, 0, 2, 3), reason)
    first = [first_of(getattr(parts[2], part), 0, 2).expand(node.shape) for part in _PARTS]
    return settled(*first)


@rule("matmul bmm")
def _product(of: Channels, node: Node) -> Any:
    """Channels that are summed over go together, and with them the heads that they belong to."""
    left, right = of(node.args[0]), of(node.args[1])
    if not (isinstance(left, Value) and isinstance(right, Value)) or left.labels.dim() != right.labels.dim() or (
        left.labels.dim() < 3 or left.labels.shape[:-2] != right.labels.shape[:-2]
    ):
        return None
    a, b, reason = left.labels, right.labels, f"{node.op} in {node.module[0]}"
    if varies(a, -1) or varies(b, -2):
        of.labels.tie(a, first_of(a, -1), reason)
        of.labels.tie(b, first_of(b, -2), reason)
    a, b = first_of(a, -1), first_of(b, -2)
    if varies(a, -2) and varies(b, -1):
        return None
    of.labels.tie(first_of(a, -2), first_of(b, -1), reason)
    if varies(left.labels, -1) or varies(right.labels, -2):
        of.labels.tie(a, b, reason)
    labels = (a if varies(a, -2) else b).expand(node.shape)
    zeros = [~(each.unknown | (each.number != 0)).any(dim, True) for each, dim in ((left, -1), (right, -2))]
    return settled(labels, ~(zeros[0] | zeros[1]), torch.zeros((), dtype=torch.float64))

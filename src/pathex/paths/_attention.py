"""Softmax and what is made of it: attention and gated linear units."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.paths._readings import RECORD, REPLAY, Record, Replay, Slope

__all__: list[str] = []

_SOFTMAX = ("softmax", "_softmax", "softmin")
_LOG_SOFTMAX = ("log_softmax",)


def _dim(reading: Record | Replay, func: Callable[..., Any], dim: Any) -> int:
    if not isinstance(dim, int):
        raise reading.unsupported(func.__name__, "its dim is not given")
    return dim


@RECORD.add(*_SOFTMAX, *_LOG_SOFTMAX)
def _softmax(
    reading: Record, func: Callable[..., Any], input: Tensor, dim: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    name, dim = func.__name__, _dim(reading, func, dim)
    if name == "softmin":
        input = -input
    shares = torch.softmax(input, dim).masked_fill((input == -math.inf).all(dim, keepdim=True), 0.0)
    reading.site(Slope(shares.detach().clone(), input.shape))
    return torch.log_softmax(input, dim) if name in _LOG_SOFTMAX else shares


@REPLAY.add(*_SOFTMAX, *_LOG_SOFTMAX)
def _softmax_linear(
    reading: Replay, func: Callable[..., Any], input: Tensor, dim: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    """By its Jacobian ``P_i (1[i = j] - P_j)``, or ``1[i = j] - P_j`` of the logarithm, each entry squared."""
    dim = _dim(reading, func, dim)
    if reading.sites is None:
        reading.open_per_sample(func)
        # A softmax of one unit is constant.
        return input * float(input.shape[dim] > 1 and not reading.values_only)
    site: Slope = reading.next_site(Slope, input.shape, func)
    shares = site.forward.to(input.dtype)
    outer = 1.0 if func.__name__ in _LOG_SOFTMAX else reading.slope(shares)
    if reading.coefficients == "plain":
        sign = -1 if func.__name__ == "softmin" else 1
        return sign * outer * (input - (shares * input).sum(dim, keepdim=True))
    squares = shares.square()
    return outer * ((1 - shares).square() * input + (squares * input).sum(dim, keepdim=True) - squares * input)


# -- written as others -------------------------------------------------------------------------------------------------


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention, written out."""
    if enable_gqa:
        heads = query.size(-3)
        key, value = (t.repeat_interleave(heads // t.size(-3), -3) for t in (key, value))
    logits = (query * (1 / math.sqrt(query.size(-1)) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~seen, -math.inf)
    return _shares(logits, attn_mask) @ value


def _shares(logits: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)


@RECORD.add("scaled_dot_product_attention")
@REPLAY.add("scaled_dot_product_attention")
def _scaled_dot_product_attention(
    reading: Record | Replay, func: Callable[..., Any], *args: Any, **kwargs: Any
) -> Tensor:
    result: Tensor = reading.inside(_attention, *args, **kwargs)
    return result


@RECORD.add("glu")
@REPLAY.add("glu")
def _glu(reading: Record | Replay, func: Callable[..., Any], input: Tensor, dim: int = -1) -> Any:
    def written() -> Tensor:
        value, gate = input.chunk(2, dim)
        return value * gate.sigmoid()

    return reading.inside(written)


@RECORD.add("multi_head_attention_forward")
@REPLAY.add("multi_head_attention_forward")
def _multi_head_attention(
    reading: Record | Replay,
    func: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """`nn.MultiheadAttention` written out; ``(L, N, E)`` as its function takes it."""
    if add_zero_attn or any(tensor is not None for tensor in (bias_k, bias_v, static_k, static_v)):
        raise reading.unsupported(func.__name__, "with added keys and values")

    def written() -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        states = [t if batched else t.unsqueeze(1) for t in (query, key, value)]
        separate = (q_proj_weight, k_proj_weight, v_proj_weight)
        weights = separate if in_proj_weight is None or use_separate_proj_weight else in_proj_weight.chunk(3)
        biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
        heads = []
        for state, weight, bias in zip(states, weights, biases, strict=True):
            x = F.linear(state, weight, bias)  # type: ignore[arg-type]
            heads.append(x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3))  # (N, heads, L, E / heads)
        q, k, v = heads
        logits = (q * (1 / math.sqrt(q.size(-1)))) @ k.transpose(-2, -1)
        if key_padding_mask is not None:
            padding = key_padding_mask if batched else key_padding_mask[None]
            logits = _masked(logits, padding[:, None, None])
        if attn_mask is not None:
            grouped = attn_mask.unflatten(0, (-1, num_heads)) if attn_mask.dim() == 3 else attn_mask
            logits = _masked(logits, grouped)
        shares = logits.softmax(-1)
        out = F.linear((shares @ v).permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
        seen = shares.mean(1) if average_attn_weights else shares
        if not batched:
            out, seen = out.squeeze(1), seen.squeeze(0)
        return out, seen if need_weights else None

    return reading.inside(written)


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    """In this module True means left out."""
    return logits.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else logits + mask

"""The operators of exported networks by what they do, under the names of their plain (not in-place) forms."""

from collections.abc import Mapping, Sequence

from torch import nn


def words(text: str) -> frozenset[str]:
    """The words of a text, which have spaces between them."""
    return frozenset(text.split())


# A new tensor in the form of another one: its values do not come from it.
CREATIONS = words(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty "
    "new_full new_empty_strided"
)
# The first operand in the form of the second one.
FORMED_LIKE = words("view_as expand_as reshape_as type_as")
# What decides by the values of its input, and has no derivative.
DECISIONS = words(
    "gt ge lt le eq ne greater greater_equal less less_equal not_equal argmax argmin argsort searchsorted sign sgn "
    "round floor ceil trunc isnan isinf isfinite heaviside bucketize count_nonzero nonzero multinomial bernoulli "
    "signbit recorded logical_and logical_or logical_not logical_xor bitwise_not bitwise_and bitwise_or one_hot any "
    "all"
)
DRAWS = words(
    "rand rand_like randn randn_like randint randint_like randperm bernoulli multinomial normal uniform exponential "
    "geometric poisson cauchy log_normal random"
)
# Not done in evaluation, whatever a network says in its forward pass.
DROPOUTS = words("dropout feature_dropout alpha_dropout feature_alpha_dropout")
WEIGHTED = words("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution")
# Operations that move numbers or add them up without weighing them: linear with coefficient 1.
STRUCTURE = words(
    "view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze contiguous clone alias detach "
    "detach_copy positive atleast_1d atleast_2d atleast_3d expand expand_as broadcast_to lift_fresh_copy lift_fresh "
    "_to_copy to type_as real float double half bfloat16 getitem dropout feature_dropout alpha_dropout "
    "feature_alpha_dropout native_dropout rename _unsafe_view data transpose swapaxes swapdims permute movedim "
    "moveaxis t adjoint numpy_T mT mH matrix_H repeat tile repeat_interleave chunk split split_with_sizes "
    "tensor_split unbind hsplit vsplit dsplit narrow select slice index_select index gather take_along_dim roll flip "
    "fliplr flipud rot90 unfold im2col diagonal pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle unsafe_chunk unsafe_split unsafe_split_with_sizes sum nansum cumsum col2im"
)
# Functions that are not zero where what reaches them is.
NEVER_ZERO = words(
    "softmax log_softmax _softmax sigmoid hardsigmoid exp exp2 cos softplus log_sigmoid log rsqrt reciprocal erfc"
)

# Elementwise, zero at zero.
ACTIVATIONS = words(
    "gelu silu mish hardswish elu selu celu tanh softsign tanhshrink softshrink hardshrink sin asinh atan arctan "
    "erf expm1 log1p"
)
# Elementwise, with a derivative.
FUNCTIONS = words(
    "sigmoid hardsigmoid softplus log_sigmoid exp cos log log2 log10 sqrt rsqrt square abs pow float_power "
    "reciprocal exp2 absolute erfc special_expit"
)

_OPERATORS: Mapping[str, frozenset[str]] = {
    "input": words("input"),
    "structure": STRUCTURE,
    "weighted": WEIGHTED,
    "gate": words("relu relu6 hardtanh clamp clip clamp_min clamp_max leaky_relu prelu rrelu threshold"),
    "smooth": ACTIVATIONS,
    "function": FUNCTIONS | words("softmax _softmax log_softmax linalg_vector_norm norm"),
    "pool": words(
        "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max min amax amin maximum minimum fmax fmin topk "
        "sort kthvalue"
    ),
    "average": words(
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
        "upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d "
        "_upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
    ),
    "normalisation": words("batch_norm layer_norm group_norm instance_norm rms_norm var std var_mean"),
    "product": words(
        "mul multiply div divide true_divide matmul bmm mm mv dot inner outer einsum addmm addmv baddbmm addcmul "
        "addcdiv scaled_dot_product_attention glu lerp"
    ),
    "sum": words(
        "add sub subtract rsub neg negative cat concat concatenate stack hstack vstack dstack column_stack pad "
        "constant_pad_nd where masked_fill write copy fill index_put"
    ),
}
ROLES = {op: role for role, ops in _OPERATORS.items() for op in ops}


def breaks_in_channels_last(weight: Sequence[int], stride: int | Sequence[int], groups: int) -> bool:
    """Whether the backward pass on a CPU of a convolution with a weight of this shape writes beyond its memory."""
    # In oneDNN 3.12: https://github.com/uxlfoundation/oneDNN/issues/6035
    strides = [stride] if isinstance(stride, int) else stride
    return groups == 1 and weight[1] < 16 and set(weight[2:]) == {1} and max(strides) > 1


def has_convolution_that_breaks(model: nn.Module) -> bool:
    """Whether one of the convolutions of a network is `breaks_in_channels_last`."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # A weight may be there in another form than that of the convolution.
    forms = [(conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size) for conv in convolutions]
    return any(
        breaks_in_channels_last(form, conv.stride, conv.groups) for form, conv in zip(forms, convolutions, strict=True)
    )

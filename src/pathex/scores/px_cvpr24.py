r"""Path eXclusion as the code released with the CVPR 2024 paper computes it, for reproducing its tables.

Three copies of the masked network, all with BatchNorm on the statistics of the batch. The first records the gates. The
second has the weights as they are and the recorded gates: its output z1 equals that of the first. The third has squared
parameters and no activation: z2. With ``R = sum z1 z2`` and ``g = dR / d(theta^2)`` at the third network the score is
``|g| |theta|^5``; g is summed over the batches as delivered.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.paths import run, spellings, tensors_of, untouched
from pathex.scores._memory import doubt_batches
from pathex.scores._method import Card, Method
from pathex.scores._problem import Batch, Problem
from pathex.scores._reader import OPTIONS

__all__ = ["METHOD"]

_RELU = frozenset(spellings("relu", "relu_"))
_DROPOUT = frozenset(spellings("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"))
_OTHER_ACTIVATIONS = frozenset(
    spellings(
        *("relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "hardtanh", "hardtanh_", "gelu", "silu", "silu_"),
        *("mish", "mish_", "elu", "elu_", "selu", "celu", "tanh", "tanh_", "sigmoid", "sigmoid_", "hardsigmoid"),
        *("hardswish", "softplus", "logsigmoid", "softmax", "glu", "threshold"),
    )
)


class _BatchStatistics(TorchFunctionMode):
    """BatchNorm on the statistics of the batch, stored ones untouched; dropout off; ReLU removed on demand."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.linear = linear

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func in _DROPOUT or (self.linear and func in _RELU):
            return args[0] if args else kwargs["input"]
        if func in _OTHER_ACTIVATIONS:
            raise UnsupportedOperation(f"px-cvpr24 is defined for ReLU only; the network calls {func.__name__}")
        return func(*args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if input.numel() // input.shape[1] < 2:
        raise InvalidInput(
            "px-cvpr24 normalises by the statistics of each batch: a batch of one image is too small here"
        )
    return F.batch_norm(input, None, None, weight, bias, True, 0.0, eps)


def _score(
    problem: Problem, *, squared_norms: Sequence[str] = (), output: str | int | None = None
) -> dict[str, Tensor]:
    weights = problem.masked()
    plain = tensors_of(problem.model, weights, problem.dtype)
    squares = {name: tensor.square() for name, tensor in plain.items()}
    for name in _kept_as_they_are(problem.model, squared_norms):
        squares[name] = plain[name]
    leaves = {name: squares[name].detach().requires_grad_() for name in weights}
    squares |= leaves

    def part(batch: Batch) -> dict[str, Tensor]:
        x = batch[0].to(problem.device, problem.dtype)
        with torch.no_grad():
            z1 = _forward(problem.model, plain, x, output, linear=False)
        with torch.enable_grad():
            z2 = _forward(problem.model, squares, x, output, linear=True)
            grads = torch.autograd.grad((z1 * z2).sum(), list(leaves.values()), materialize_grads=True)
        return dict(zip(weights, grads, strict=True))

    doubt_batches(problem, output)
    sums = problem.processes.summed(problem.batches, part)
    return {name: sums[name].abs() * weight.abs() ** 5 for name, weight in weights.items()}


def _forward(model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor, output: Any, *, linear: bool) -> Tensor:
    with untouched(model), _BatchStatistics(linear):
        return run(model, tensors, x.clone(), output)


def _kept_as_they_are(model: nn.Module, squared_norms: Sequence[str]) -> list[str]:
    """Affine parameters of normalisation layers that are not squared, and all buffers."""
    if isinstance(squared_norms, str):
        squared_norms = [squared_norms]
    if not isinstance(squared_norms, Sequence) or not all(isinstance(pattern, str) for pattern in squared_norms):
        raise InvalidInput(f"squared_norms must be globs of module names, not {squared_norms!r}")
    names = [name for name, _ in model.named_buffers()]
    norms = [path for path, module in model.named_modules() if isinstance(module, _NORMS)]
    for pattern in squared_norms:
        if not any(fnmatchcase(path, pattern) for path in norms):
            raise InvalidInput(f"squared_norms: {pattern!r} matches no normalisation layer. Known: {', '.join(norms)}")
    for path in norms:
        if not any(fnmatchcase(path, pattern) for pattern in squared_norms):
            names += [f"{path}.{name}" for name, _ in model.get_submodule(path).named_parameters(recurse=False)]
    return names


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)

METHOD = Method(
    Card(
        name="px-cvpr24",
        title="Path eXclusion as released with the paper",
        citation="Code released with Iurada, Ciccone, Tommasi, CVPR 2024, arXiv 2406.01820",
        equation="|g_j| |theta_j|^5, g = dR/d(theta^2), R = sum_{n,k} z1_{n,k} z2_{n,k}",
        summed="R is summed over images and outputs of the batches as delivered, the absolute value is taken once",
        needs="images",
        batchnorm="statistics of each batch in every copy: scores depend on how the images are batched",
        rounds=100,
        cost="1 forward pass without gradient, 1 forward and backward pass, of whole batches as delivered",
        holds_for="ReLU; it has no derivation",
        differences="the released code tells normalisation layers by the letters 'bn' in their names, so one named "
        "'shortcut.1' is squared like a weight; here that is the option squared_norms. At initialization it changes "
        "nothing",
        checked="golden scores to 1e-9, a twin with three hand-made copies to 1e-10",
        options={
            "squared_norms": "globs of normalisation modules whose affine parameters are squared (default none)",
            "output": OPTIONS["output"],
        },
    ),
    _score,
)

r"""Path eXclusion as the code released with the CVPR 2024 paper computes it, for reproducing its tables.

Three copies of the masked network, all with BatchNorm on the statistics of the batch. The first records the gates. The
second has the weights as they are and the recorded gates: its output z1 equals that of the first. The third has squared
parameters and no activation: z2. With ``R = sum z1 z2`` and ``g = dR / d(theta^2)`` at the third network the score is
``|g| |theta|^5``; g is summed over the batches as delivered.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import ACTIVATIONS, Graph, Interpreter, Node, untouched, words
from pathex.paths import tensors_of
from pathex.scores._memory import doubt_batches
from pathex.scores._method import Card, Method
from pathex.scores._problem import Batch, Problem
from pathex.scores._reader import OPTIONS

__all__ = ["METHOD"]

_OTHER_ACTIVATIONS = ACTIVATIONS | words(
    "relu6 leaky_relu prelu rrelu hardtanh sigmoid hardsigmoid softplus log_sigmoid softmax glu threshold"
)


class _Copy(Interpreter):
    """BatchNorm on the statistics of the batch; ReLU removed on demand."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], dtype: torch.dtype, linear: bool) -> None:
        super().__init__(graph, tensors.__getitem__, dtype)
        self.linear = linear

    def visit(self, node: Node) -> Any:
        if node.op in _OTHER_ACTIVATIONS:
            raise UnsupportedOperation(f"px-cvpr24 is defined for ReLU only; the network calls {node.op}")
        if node.op == "relu" and self.linear:
            return self(node.args[0])
        if node.op != "batch_norm":
            return self.plain(node)
        x: Tensor = self(node["input"])
        if x.numel() // x.shape[1] < 2:
            raise InvalidInput(
                "px-cvpr24 normalises by the statistics of each batch: a batch of one image is too small here"
            )
        return F.batch_norm(x, None, None, self(node["weight"]), self(node["bias"]), True, 0.0, node["eps"])


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
        graph = problem.graph(output, x)
        with untouched(problem.model), torch.no_grad():
            z1 = _Copy(graph, plain, problem.dtype, linear=False).run(x)
        with untouched(problem.model), torch.enable_grad():
            z2 = _Copy(graph, squares, problem.dtype, linear=True).run(x)
            grads = torch.autograd.grad((z1 * z2).sum(), list(leaves.values()), materialize_grads=True)
        return dict(zip(weights, grads, strict=True))

    doubt_batches(problem, output)
    sums = problem.processes.summed(problem.batches, part)
    return {name: sums[name].abs() * weight.abs() ** 5 for name, weight in weights.items()}


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

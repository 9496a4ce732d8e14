"""Path eXclusion as released with the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.errors import InvalidInput, UnsupportedOperation
from pathex.graph import ACTIVATIONS, Graph, Interpreter, Node, Output, each, tensors_in, untouched, words
from pathex.paths import tensors_of
from pathex.scores.method import Method
from pathex.scores.options import Allowed
from pathex.scores.problem import Batch, Problem, doubt_batches

_OTHER_ACTIVATIONS = ACTIVATIONS | words(
    "relu6 leaky_relu prelu rrelu hardtanh sigmoid hardsigmoid softplus log_sigmoid softmax glu threshold"
)


Globs = Annotated[
    str | Sequence[str],
    Allowed(
        "globs of module names",
        lambda value: isinstance(value, str | Sequence) and all(isinstance(pattern, str) for pattern in value),
    ),
]


class _Copy(Interpreter):
    """BatchNorm on the statistics of the batch; ReLU as it is, removed, or by the gates of a copy with stored ones."""

    def __init__(
        self, graph: Graph, tensors: Mapping[str, Tensor], dtype: torch.dtype,
        relu: Literal["plain", "linear"] | Mapping[Node, Tensor] = "plain", *, stored: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(graph, tensors.__getitem__, dtype)
        self.relu, self.stored = relu, stored
        self.gates: dict[Node, Tensor] = {}

    def visit(self, node: Node) -> Any:
        if node.op in _OTHER_ACTIVATIONS:
            raise UnsupportedOperation(
                f"px-cvpr24 and its later form are defined for ReLU only; the network calls {node.op}"
            )
        if node.op == "relu":
            return self._relu(node, self(node.args[0]))
        if node.op != "batch_norm" or self.stored:
            return self.plain(node)
        x: Tensor = self(node["input"])
        if x.numel() // x.shape[1] < 2:
            raise InvalidInput(
                "px-cvpr24 and its later form normalise by the statistics of a batch: one image is too few"
            )
        return F.batch_norm(x, None, None, self(node["weight"]), self(node["bias"]), True, 0.0, node["eps"])

    def _relu(self, node: Node, x: Tensor) -> Tensor:
        if self.stored:
            self.gates[node] = x > 0
        return x.relu() if self.relu == "plain" else x if self.relu == "linear" else x * self.relu[node]


def _kept_as_they_are(model: nn.Module, squared_norms: str | Sequence[str]) -> list[str]:
    """Affine parameters of normalisation layers that are not squared, and all buffers."""
    squared_norms = [squared_norms] if isinstance(squared_norms, str) else squared_norms
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


@dataclass(frozen=True, kw_only=True)
class PXCvpr24(Method):
    r"""Path eXclusion as the code released with the CVPR 2024 paper computes it, for reproducing its tables.

    Three copies of the masked network, all with BatchNorm on the statistics of the batch. The first records the gates.
    The second has the weights as they are and the recorded gates: its output z1 equals that of the first. The third has
    squared parameters and no activation: z2. With ``R = sum z1 z2`` and ``g = dR / d(theta^2)`` at the third network
    the score is ``|g| |theta|^5``; g is summed over the batches as delivered.

    Attributes:
        squared_norms: Globs of normalisation modules whose affine parameters are squared.
        output: Which of several outputs counts: a key or an index; None: the first tensor.
    """

    name = "px-cvpr24"
    title = "Path eXclusion as released with the paper"
    citation = "Code released with Iurada, Ciccone, Tommasi, CVPR 2024, arXiv 2406.01820"
    equation = "|g_j| |theta_j|^5, g = dR/d(theta^2), R = sum_{n,k} z1_{n,k} z2_{n,k}"
    needs = "images"
    rounds = 100
    rounding = "up"

    squared_norms: Globs = ()
    output: Output = None

    def score(self, problem: Problem) -> dict[str, Tensor]:
        weights = problem.masked()
        plain = tensors_of(problem.model, weights, problem.dtype)
        squares = {name: tensor.square() for name, tensor in plain.items()}
        for name in _kept_as_they_are(problem.model, self.squared_norms):
            squares[name] = plain[name]
        leaves = {name: squares[name].detach().requires_grad_() for name in weights}
        squares |= leaves

        def part(batch: Batch) -> dict[str, Tensor]:
            x = batch[0].to(problem.device, problem.dtype)
            graph = problem.graph(self.output, x)
            with untouched(problem.model), torch.no_grad():
                z1 = _Copy(graph, plain, problem.dtype).run(*tensors_in(x))
            with untouched(problem.model), torch.enable_grad():
                z2 = _Copy(graph, squares, problem.dtype, "linear").run(*tensors_in(x))
                grads = torch.autograd.grad((z1 * z2).sum(), list(leaves.values()), materialize_grads=True)
            return dict(zip(weights, grads, strict=True))

        doubt_batches(problem, self.output)
        sums = problem.processes.sum_over(problem.batches, part)
        return {name: sums[name].abs() * weight.abs() ** 5 for name, weight in weights.items()}


@dataclass(frozen=True, kw_only=True)
class PXCvpr24V2(Method):
    r"""Path eXclusion as the authors' code computes it since its last change, in 2025.

    The masked network with its stored BatchNorm statistics gives the gates. Its copy of ones with these gates reads
    x^2: z1. Its copy of squared weights without activations reads an image of ones: z2. Both normalise by the
    statistics of their batch. With ``R = sum z1 z2`` and ``g = dR / d(theta^2)`` the score is ``|g| theta^2``.

    Attributes:
        unchanged: Globs of parameters that neither copy changes, as those of normalisation layers.
        output: Which of several outputs counts: a key or an index; None: the first tensor.
    """

    name = "px-cvpr24-v2"
    title = "Path eXclusion as released later"
    citation = "Code of Iurada, Ciccone, Tommasi, CVPR 2024, arXiv 2406.01820, after its last change"
    equation = "|g_j| theta_j^2, g = dR/d(theta^2), R = sum_{n,k} z1_{n,k} z2_{n,k}"
    needs = "images"
    rounds = 100
    rounding = "up"

    unchanged: Globs = ("*fc*",)
    output: Output = None

    def score(self, problem: Problem) -> dict[str, Tensor]:
        weights, patterns = problem.masked(), [self.unchanged] if isinstance(self.unchanged, str) else self.unchanged
        plain = tensors_of(problem.model, weights, problem.dtype)
        same = {n for n in plain if any(fnmatchcase(n, pattern) for pattern in patterns)}
        changed = plain.keys() - same - set(_kept_as_they_are(problem.model, ()))
        present = {name: (problem.mask or {}).get(name, torch.ones_like(plain[name])) for name in changed}
        ones = plain | {name: each.to(plain[name]) for name, each in present.items()}
        leaves = {n: (plain[n].square() if n in changed else plain[n]).detach().requires_grad_() for n in weights}
        squares = plain | {name: plain[name].square() for name in changed} | leaves

        def part(batch: Batch) -> dict[str, Tensor]:
            x = batch[0].to(problem.device, problem.dtype)
            graph = problem.graph(self.output, x)
            with untouched(problem.model), torch.no_grad():
                seen = _Copy(graph, plain, problem.dtype, stored=True)
                seen.run(*tensors_in(x))
                z1 = _Copy(graph, ones, problem.dtype, seen.gates).run(*tensors_in(each(x, torch.square)))
            with untouched(problem.model), torch.enable_grad():
                z2 = _Copy(graph, squares, problem.dtype, "linear").run(*tensors_in(each(x, torch.ones_like)))
                grads = torch.autograd.grad((z1 * z2).sum(), list(leaves.values()), materialize_grads=True)
            return dict(zip(weights, grads, strict=True))

        doubt_batches(problem, self.output)
        sums = problem.processes.sum_over(problem.batches, part)
        return {name: sums[name].abs() * weight.square() for name, weight in weights.items()}

"""CTS, concrete ticket search."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pathex.errors import InvalidInput
from pathex.graph import Images, Tensors
from pathex.scores.model_reader import ModelReader
from pathex.scores.options import LossOrName, losses
from pathex.scores.problem import Problem
from pathex.scores.search import LossSearch, State, Target, leaves, target_of

_TEMPERATURE = 2 / 3
_ROOM = 1.1  # the search may expect to keep so many times what the mask will
_SMOOTHING = 0.01
_EPSILON = 1e-10  # of Adam; the code has 1e-8 and a loss that is multiplied by 100
_LATE, _SLOW = 0.88, 0.1  # the learning rate falls one epoch before this share of them, and to what


@dataclass(frozen=True, kw_only=True)
class Cts(LossSearch):
    r"""CTS (Arora, Teuscher, 2025): logits of a random mask that are trained while the weights stay as they are.

        m_j = sigmoid((a_j + L_j) / tau),   L_j = log u - log(1 - u),   u uniform,   tau = 2/3,
        descends  loss(theta m) + lambda (sum_j sigmoid(a_j) / (1.1 K) - 1)  by Adam;   S_j = a_j.

    While the mask is expected to keep more than 1.1 K weights, lambda is the ratio of the norms of both gradients,
    otherwise 0, smoothed by 0.01 (GradBalance). Every logit starts at that of the density; from epoch
    ``int(0.88 epochs)`` on, of 3 or more, the learning rate is a tenth.

    Attributes:
        loss: As in other methods, or ``kl``: the reverse Kullback-Leibler divergence to the outputs of the dense
            network, published as CTS-KL.
        epochs: Passes over the pruning set; the code runs 1/8 (``short``) to all of the epochs of training.
        batch_size: Images of a step, at most, as released for CIFAR-10.
    """

    name = "cts"
    title = "CTS, concrete ticket search"
    citation = (
        "Arora, Teuscher: Winning the lottery by preserving network training dynamics with concrete ticket search. "
        "2025, arXiv 2512.07142"
    )
    equation = (
        "S_j = a_j, trained to descend loss(theta m) + lambda (sum_j sigmoid(a_j) / (1.1 K) - 1), "
        "m_j = sigmoid((a_j + logistic noise) / (2/3))"
    )

    loss: Annotated[LossOrName | Literal["kl"], losses("kl")] = "cross-entropy"  # type: ignore[assignment]

    def start(self, problem: Problem) -> State:
        free = sum(int(kept.sum()) for kept in problem.allowed.values())
        density = min(_total(target_of(problem, self.name)) / free, 1 - 1e-3)  # whose logit is finite
        first = torch.logit(torch.tensor(density, dtype=torch.float64))
        logits = leaves(problem, lambda weight, source: first.expand(weight.shape).clone())
        balance = torch.full((), -1.0, device=problem.device, dtype=problem.dtype)  # not known yet
        return State(logits, torch.optim.Adam(logits.values(), eps=_EPSILON), {"balance": balance})

    def decay(self, epoch: int) -> float:
        late = int(_LATE * self.epochs) - 1
        return _SLOW if 0 < late <= epoch else 1.0

    def relaxed(self, problem: Problem, values: Tensors, source: torch.Generator) -> dict[str, Tensor]:
        masks = {}
        for name, logit in values.items():
            noise = torch.rand(logit.shape, dtype=torch.float64, generator=source).clamp(1e-10, 1 - 1e-10).logit()
            masks[name] = torch.sigmoid((logit + noise.to(logit.dtype).to(logit.device)) / _TEMPERATURE)
        return masks

    def loss_of(self, reader: ModelReader, x: Images, y: Tensor, masked: Tensors, whole: Tensors) -> Tensor:
        if self.loss != "kl":
            return super().loss_of(reader, x, y, masked, whole)
        with torch.no_grad():
            outputs = reader.forward(x, whole, reader.statistics(whole))
        if outputs.dim() < 2 or outputs.shape[1] < 2:
            raise InvalidInput(
                f"loss='kl' needs outputs (N, classes, ...) with two classes or more, not {tuple(outputs.shape)}"
            )
        dense = outputs.log_softmax(1)
        sparse = reader.forward(x, masked, reader.statistics(masked)).log_softmax(1)
        return F.kl_div(dense, sparse, reduction="batchmean", log_target=True)

    def gradients(self, problem: Problem, state: State, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        allowed, room = problem.allowed, _ROOM * _total(target_of(problem, self.name))
        chances = {name: torch.sigmoid(logit.detach()) * allowed[name] for name, logit in state.values.items()}
        slopes = {name: chance * (1 - chance) / room for name, chance in chances.items()}
        excess = torch.stack([chance.sum() for chance in chances.values()]).sum() / room - 1
        ratio = _norm(grads) / _norm(slopes).clamp_min(1e-12) * (excess > 0)
        balance = state.more["balance"]
        balance.copy_(torch.where(balance < 0, ratio, (1 - _SMOOTHING) * balance + _SMOOTHING * ratio))
        return {name: grad + balance * slopes[name] for name, grad in grads.items()}


def _total(target: Target) -> int:
    return target if isinstance(target, int) else sum(target.values())


def _norm(tensors: Tensors) -> Tensor:
    return torch.stack([tensor.norm() for tensor in tensors.values()]).norm()

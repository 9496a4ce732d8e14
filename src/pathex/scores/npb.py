r"""Node-path balance (Pham et al., NeurIPS 2023): keep many input-output paths, and many units that lie on one.

    S_j = alpha N_j / n_units + (1 - alpha) P_j / sum_layer P + beta K_j / n_kept.

What weight j adds to the published objective of its layer, in the masked network: units of which it is the best weight,
its part of the paths, and whether it is the best weight of its kernel.
"""

import math
import numbers

import torch
from torch import Tensor

from pathex.errors import InvalidInput, UnknownName
from pathex.paths import Use, count_paths
from pathex.scores._method import Card, Method
from pathex.scores._problem import Problem, generator
from pathex.scores._reader import OPTIONS

__all__ = ["METHOD"]


def _score(
    problem: Problem,
    *,
    alpha: float = 0.5,
    beta: float = 0.1,
    per_sample: str = "refuse",
    output: str | int | None = None,
) -> dict[str, Tensor]:
    if not _is_number(alpha) or not 0 <= alpha <= 1:
        raise InvalidInput(f"alpha must be a number in [0, 1], not {alpha!r}")
    if not _is_number(beta) or not 0 <= beta < math.inf:
        raise InvalidInput(f"beta must be a number of at least 0, not {beta!r}")
    if per_sample not in ("refuse", "one"):
        raise UnknownName("per_sample", per_sample, ("refuse", "one"))
    mask = problem.mask or {n: torch.ones(w.shape, dtype=torch.bool) for n, w in problem.prunable.items()}
    counts = count_paths(
        problem.model,
        problem.images[:1],
        mask,
        per_sample=per_sample,  # type: ignore[arg-type]
        output=output,
    )
    source, scores = generator(problem.seed, problem.round), {}
    for name, through in counts.through.items():
        # Paths that are equal in number are told apart by chance, else every unit would choose the same weight.
        chance = 1 + 1e-9 * torch.rand(through.shape, dtype=torch.float64, generator=source).to(through)
        scores[name] = (1 - alpha) * through / through.sum().clamp_min(torch.finfo(through.dtype).tiny)
        for use in counts.uses[name]:
            _add_bests(scores[name], use, through * chance, alpha, beta)
    return scores


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _add_bests(score: Tensor, use: Use, paths: Tensor, alpha: float, beta: float) -> None:
    """Add what the best weight of each unit and kernel is worth."""
    values = use.by_units(paths)
    alive = values > 0
    of_output = (values == values.amax((2, 3), keepdim=True)) & alive
    # An input unit that the best weight of an output unit keeps anyway needs none of its own.
    covered = of_output.any(3, keepdim=True).any(1, keepdim=True)
    of_input = (values == values.amax((1, 3), keepdim=True)) & alive & ~covered
    of_kernel = (values == values.amax(3, keepdim=True)) & alive
    groups, outputs, inputs, _ = values.shape
    units = groups * (outputs + inputs)
    kept = max(1, int(alive.sum()))
    use.add_to(score, alpha * (of_output.to(score) + of_input.to(score)) / units + beta * of_kernel.to(score) / kept)


METHOD = Method(
    Card(
        name="npb",
        title="Node-path balance",
        citation="Pham, Ta, Liu, Xiang, Le, Wen, Tran-Thanh: Towards data-agnostic pruning at initialization: what "
        "makes a good sparse mask? NeurIPS 2023",
        equation="S_j = alpha N_j / n_units + (1 - alpha) P_j / sum_layer P + beta K_j / n_kept; P_j paths of the "
        "masked network through j, N_j = 1 if j is the best weight of its output unit, or of an input unit that no "
        "such weight has; K_j = 1 if it is the best of its kernel",
        summed="P_j over all paths, positions included; n_units are the inputs and outputs of the layer, n_kept its "
        "weights on paths. The values of the weights play no part",
        needs="nothing",
        batchnorm="not used: it counts 1",
        rounds=20,
        cost="1 forward and backward pass of one image, in float64",
        holds_for="networks that can be read as open paths: convolutions, linear layers, activations, pools, sums. "
        "per_sample='one' reads normalisation over a sample and attention as 1. The paper takes the densities of "
        "layers from ERK: allocation='erk'; the terms are shares of a layer, so that one threshold for all works too",
        differences="the paper solves an integer programme for each layer in turn, at its final density, that "
        "maximises alpha (units with a weight) + (1 - alpha) (paths that reach the layer, through it) + beta (kernels "
        "with a weight). Here each weight is scored by what it adds to these three, in rounds, and paths count to the "
        "end of the network. The released code bounds the weights of a kernel (max_p), places them at random in it, "
        "solves large layers in pieces, and repairs the mask afterwards. Its scripts have alpha 0.01 and beta 1 or 2, "
        "for its solver; with those, this score loses units that alpha 0.5 keeps",
        checked="path enumeration to 1e-10 in float64; best weights by loops over all units; more units than random "
        "and SynFlow, and more paths than random, on two small networks",
        options={
            "alpha": "weight of units against paths, in [0, 1] (default 0.5)",
            "beta": "weight of kernels (default 0.1)",
            "per_sample": "coefficients that belong to a sample (LayerNorm, attention, gates): refuse (default): an "
            "error; one: they count 1",
            "output": OPTIONS["output"],
        },
    ),
    _score,
    paths=True,
)

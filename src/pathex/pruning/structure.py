"""Masks of a structure: whole channels that `pathex.compact` takes out, or N of every M weights."""

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pathex.compaction import ChannelGroups
from pathex.errors import InvalidInput, PathexWarning, UnknownName, listed
from pathex.pruning.topk import keep_best

STRUCTURES = ("weights", "channels", "2:4 (or another N:M)")
_TRIALS = 64  # groups that may fill what is left of a budget

Masks = Mapping[str, Tensor]


def spent(mask: Masks, costs: Mapping[str, int]) -> int:
    """What a mask keeps of what is counted, by the cost of an entry of each weight."""
    return sum(int(kept.count_nonzero()) * costs[name] for name, kept in mask.items())


class Channels:
    """Keeps whole groups of channels: those of most score for what they cost.

    Args:
        groups: The groups.
    """

    def __init__(self, groups: ChannelGroups) -> None:
        self._groups = groups

    def keep(
        self, scores: Masks, *, allowed: Masks, limit: int, costs: Mapping[str, int], seed: int, last: bool
    ) -> dict[str, Tensor]:
        """The mask of the best groups that cost no more than a limit, one at least of each layer of groups alone."""
        groups, allowed = self._groups, {name: entry.cpu() for name, entry in allowed.items()}
        found = {name: torch.where(entry, scores[name].detach().cpu(), 0) for name, entry in allowed.items()}
        size = groups.sums({name: entry.double() * costs[name] for name, entry in allowed.items()})
        alive = size > 0
        worth = torch.where(alive, groups.sums(found) / size, -torch.inf)
        order = worth.argsort(descending=True, stable=True)
        forced = groups.best(order) & alive

        def best(count: int) -> Tensor:
            return keep_best({"": worth}, {"": alive}, count, seed=seed, forced={"": forced})[""]

        def cost(keep: Tensor) -> int:
            return spent(groups.masked(keep, allowed), costs)

        if cost(forced) > limit:
            raise InvalidInput(f"sparsity leaves {limit} to be kept and one channel of each layer costs {cost(forced)}")
        low, high = int(forced.sum()), int(alive.sum()) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cost(best(middle)) <= limit else (low, middle)
        keep = best(low)
        for group in order[~keep[order] & alive[order]][: _TRIALS if last else 0].tolist():
            keep[group] = True
            keep[group] = cost(keep) <= limit
        return groups.masked(keep, allowed)


class Blocks:
    """Keeps N of every M weights of neighbouring inputs.

    Args:
        most: N.
        of: M.
    """

    def __init__(self, most: int, of: int) -> None:
        self.most, self.of = most, of

    def fitting(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights whose inputs are a multiple of M; a warning names the others."""
        found = {}
        for name, weight in weights.items():
            transposed = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.modules.conv._ConvTransposeNd)
            if weight.dim() > 1 and weight.shape[1] % self.of == 0 and not transposed:
                found[name] = weight
        if not found:
            raise InvalidInput(f"structure='{self.most}:{self.of}': no weight has a multiple of {self.of} inputs")
        if rest := [name for name in weights if name not in found]:
            message = f"inputs are no multiple of {self.of}, so these weights are left as they are: {listed(rest)}"
            warnings.warn(message, PathexWarning, stacklevel=4)
        return found

    def count(self, start: Masks) -> int:
        """How many weights are kept in the end."""
        return sum(int(entry.count_nonzero()) for entry in self.best(start, start, 0).values())

    def best(self, scores: Masks, allowed: Masks, seed: int) -> dict[str, Tensor]:
        """The best N of every block, of those that are allowed; ties by a seeded order."""
        order = torch.randperm(self.of, generator=torch.Generator().manual_seed(seed))
        return {name: self._best(score.detach().cpu(), allowed[name].cpu(), order) for name, score in scores.items()}

    def _best(self, score: Tensor, allowed: Tensor, order: Tensor) -> Tensor:
        score, allowed = (each.movedim(1, -1).unflatten(-1, (-1, self.of))[..., order] for each in (score, allowed))
        worth = score.double().masked_fill(~allowed, -torch.inf)
        rank = worth.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        kept = ((rank < self.most) & allowed)[..., order.argsort()]
        return kept.flatten(-2).movedim(-1, 1).contiguous()

    def keep(
        self, scores: Masks, *, allowed: Masks, limit: int, costs: Mapping[str, int], seed: int, last: bool
    ) -> dict[str, Tensor]:
        """The best of every block, and in the rounds before the last the best others."""
        best = self.best(scores, allowed, seed)
        return best if last else keep_best(scores, allowed, limit, seed=seed, forced=best)


def read_structure(structure: str, sparsity: float) -> Blocks | None:
    """The blocks of a structure by name, with which sparsity must go; None: ``weights`` or ``channels``."""
    if structure == "weights":
        return None
    blocks = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", structure) if isinstance(structure, str) else None
    if blocks is None and structure != "channels":
        raise UnknownName("structure", structure, STRUCTURES)
    if blocks is None:
        return None
    most, of = map(int, blocks.groups())
    if most >= of:
        raise InvalidInput(f"structure={structure!r} removes nothing: N must be less than M")
    if abs(sparsity - (1 - most / of)) > 1e-6:
        raise InvalidInput(
            f"structure={structure!r} removes {1 - most / of:g} of the weights, not sparsity={sparsity:g}"
        )
    return Blocks(most, of)

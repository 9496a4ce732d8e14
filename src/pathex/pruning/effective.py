"""The effective budget: weights that lie on paths, exactly as many as are wanted."""

from collections.abc import Callable, Mapping

from torch import Tensor

from pathex.pruning.topk import Pool

_TRIALS = 64  # weights that are tried in vain before the search gives up


def keep_connected(
    scores: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    count: int,
    connected: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    *,
    seed: int = 0,
    at_least: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Keep ``count`` weights of high score, all of them on a path from input to output where that is possible."""
    # The fewest best weights of which ``count`` are connected are found by bisection; of those that are connected the
    # worst go, as long as ``count`` others stay connected; what is then missing is filled up one by one. The search is
    # greedy and gives up on hard cases, and then some kept weights are not connected. About 20 calls of ``connected``,
    # and a few more for each weight too many.
    pool = Pool(scores, allowed, seed)
    secured = pool.secured(at_least, count)

    def alive(candidates: Tensor) -> Tensor:
        return pool.vector(connected(pool.named(candidates | secured))) | secured

    def ranked(number: int) -> Tensor:
        return alive(secured | pool.best(pool.allowed & ~secured, number - int(secured.count_nonzero())))

    low, high = count, int(pool.allowed.count_nonzero())
    kept = ranked(high)
    if int(kept.count_nonzero()) < count:
        return pool.named(kept | pool.best(pool.allowed & ~kept, count - int(kept.count_nonzero())))
    while low < high:
        middle = (low + high) // 2
        found = ranked(middle)
        if int(found.count_nonzero()) >= count:
            kept, high = found, middle
        else:
            low = middle + 1
    kept = _trimmed(pool, kept, secured, count, alive)
    chosen = secured | pool.best(kept & ~secured, count - int(secured.count_nonzero()))
    return pool.named(chosen if int(kept.count_nonzero()) == count else _grown(pool, chosen, count, alive))


def _trimmed(pool: Pool, kept: Tensor, secured: Tensor, count: int, alive: Callable[[Tensor], Tensor]) -> Tensor:
    """Drop the worst of the kept weights while at least ``count`` stay alive; weights that many hang on stay."""
    needed = secured.clone()
    for _ in range(_TRIALS):
        low, high = 0, min(int(kept.count_nonzero()) - count, int((kept & ~needed).sum()))
        if high == 0:
            break
        free = kept & ~needed
        while low < high:
            middle = (low + high + 1) // 2
            rest = alive((kept & needed) | pool.best(free, int(free.count_nonzero()) - middle))
            low, high = (middle, high) if int(rest.count_nonzero()) >= count else (low, middle - 1)
        left = pool.best(free, int(free.count_nonzero()) - low)
        needed |= left ^ pool.best(left, int(left.count_nonzero()) - 1)
        kept = alive((kept & needed) | left) if low else kept
    return kept


def _grown(pool: Pool, chosen: Tensor, count: int, alive: Callable[[Tensor], Tensor]) -> Tensor:
    """Replace chosen weights that are not alive by the best others that are, and exactly ``count`` in all."""
    kept = alive(chosen)
    others = pool.allowed & ~kept
    for index in pool.ranked(pool.best(others, min(_TRIALS, int(others.count_nonzero()))).nonzero().squeeze(1)):
        found = kept.clone()
        found[index] = True
        found = alive(found)
        if int(kept.count_nonzero()) < int(found.count_nonzero()) <= count:
            kept = found
    return kept | pool.best(chosen & ~kept, count - int(kept.count_nonzero()))

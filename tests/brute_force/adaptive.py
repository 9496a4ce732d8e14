"""An adaptive schedule under one threshold, written out: lists sorted, sets compared."""

import math


def prune(score, start, size, density, rounds, tolerance):
    """Prune one vector of weights, of which those in ``start`` are there, with at most so many planned rounds.

    ``score`` gives each of all weights a score from those that are there and the number of the round; ``tolerance`` is
    the share of the weights kept that may differ in a step. The result is, for every round that is made, the planned
    round that it reaches and the weights that are there after it.
    """
    first = len(start) / size

    def number_after(planned):
        share = density if planned == rounds else first * math.exp(math.log(density / first) * planned / rounds)
        return round(share * size)

    def best(scores, there, planned):
        return set(sorted(there, key=lambda weight: -scores[weight])[: number_after(planned)])

    made = []
    reached, step, there, before = 0, 1, start, None
    while reached != rounds:
        scores = score(there, len(made) + 1)
        if before is not None:
            longest = min(2 * step, rounds - reached)
            now, then = best(scores, there, reached + longest), best(before, there, reached + longest)
            share = len(now - then) / len(now)
            # The longest step whose part of the difference is tolerated, by trying all of them.
            allowed = [k for k in range(1, longest + 1) if share * k <= tolerance * longest and tolerance > 0]
            step = max([1, *allowed])
        reached += step
        there = best(scores, there, reached)
        made.append((reached, there))
        before = scores
    return made

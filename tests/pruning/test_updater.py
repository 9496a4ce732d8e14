import itertools

import pytest
import torch

from pathex.masks import Mask
from pathex.pruning.updater import RoundUpdater


def start():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (20, 10), "b": (10, 30), "c": (5, 8)}
    return Mask({name: torch.rand(shape, generator=generator) < 0.8 for name, shape in shapes.items()})


def scores(number):
    """Other scores in each round; removed weights have scores too."""
    generator = torch.Generator().manual_seed(number)
    return {name: torch.randn(entry.shape, generator=generator) for name, entry in start().items()}


def everything(mask):
    return mask


def masks(rounds=4, **options):
    updater, current, found = RoundUpdater(start(), 0.2, rounds, **options), start(), []
    for number in range(1, rounds + 1):
        current = updater.choose(scores(number), current, number, everything)
        found.append(current)
    return found


def outside(mask, allowed):
    return sum(int((entry & ~allowed[name]).sum()) for name, entry in mask.items())


@pytest.mark.parametrize("allocation", ["global", "layer", "uniform", "erk", {"a": 0.25}], ids=str)
@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_weights_return_within_the_start_mask_and_counts_stay_exact(allocation, schedule):
    options = {"allocation": allocation, "schedule": schedule}
    plain, reviving = masks(**options), masks(revives=True, **options)
    assert [mask.kept for mask in reviving] == [mask.kept for mask in plain]
    assert reviving[-1].kept == round(0.2 * start().total)
    assert all(outside(mask, start()) == 0 for mask in reviving)
    for found, returns in ((plain, False), (reviving, True)):
        assert all((outside(later, before) > 0) == returns for before, later in itertools.pairwise(found))
    if isinstance(allocation, dict):
        assert int(reviving[-1]["a"].sum()) == 50


def test_every_round_keeps_the_best_of_the_start_mask():
    for number, mask in enumerate(masks(revives=True), 1):
        pool = torch.cat([score[start()[name]] for name, score in scores(number).items()])
        threshold = pool.sort(descending=True).values[mask.kept - 1]
        assert all(torch.equal(mask[n], (s >= threshold) & start()[n]) for n, s in scores(number).items())


def test_floors_hold_for_weights_that_may_return():
    found = masks(revives=True, min_per_layer=12)
    assert all(min(count.kept for count in mask.counts().values()) >= 12 for mask in found)
    assert all(outside(mask, start()) == 0 for mask in found)


def test_the_effective_budget_takes_back_what_lies_on_a_path():
    first = start()["a"].clone()
    first[:, 5:] = False

    def connected(mask):
        """Only half of the weights of ``a`` lie on a path."""
        return {**mask, "a": mask["a"] & first}

    for revives in (False, True):
        updater, current = RoundUpdater(start(), 0.2, 2, budget="effective", revives=revives), start()
        before = updater.choose(scores(1), current, 1, connected)
        after = updater.choose(scores(2), before, 2, connected)
        assert after.kept == round(0.2 * start().total) and outside(after, connected(start())) == 0
        assert (outside(after, before) > 0) == revives

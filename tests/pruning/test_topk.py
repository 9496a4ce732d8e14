import pytest
import torch

from pathex.pruning.topk import cut

SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), 1e-40, -1e-40, 1.0, 1.0]


def _scores(dtype, seed, spread):
    """Scores of many magnitudes and both signs, ties and extremes among them."""
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(600, generator=source, dtype=torch.float64) * torch.exp2(
        spread * torch.randn(600, generator=source, dtype=torch.float64)
    )
    values = torch.cat([values, values[:100], torch.tensor(SPECIAL, dtype=torch.float64)])
    return values.to(dtype)[torch.randperm(len(values), generator=source)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.1, 8.0])
def test_a_partition_finds_what_sorting_does(dtype, spread):
    for seed in range(5):
        scores = _scores(dtype, seed, spread)
        candidates = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)) < 0.8
        layers = scores.split([300, 0, 408])
        ranked = scores[candidates].double().sort(descending=True).values
        for count in [1, 2, 17, 200, 499, len(ranked) - 1, len(ranked), len(ranked) + 1]:
            keep, ties, surplus = cut(layers, candidates, count, dtype)
            least = ranked[min(count, len(ranked)) - 1]
            assert torch.equal(keep, candidates & (scores.double() >= least))
            assert surplus == max(0, int(keep.count_nonzero()) - count)
            if surplus:
                assert ties is not None and torch.equal(ties, candidates & (scores.double() == least))


@pytest.mark.parametrize("value", [0.0, -3.0, float("inf")])
def test_scores_that_are_all_equal_tie(value):
    keep, ties, surplus = cut([torch.full((9,), value)], torch.ones(9, dtype=torch.bool), 4, torch.float32)
    assert keep.all() and ties is not None and ties.all() and surplus == 5

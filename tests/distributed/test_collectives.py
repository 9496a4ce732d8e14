import pytest
import torch
from torch import nn

import pathex
import several_processes as several
from pathex.distributed import ALONE, processes_of
from pathex.errors import InvalidInput

TOLERANCE = 1e-9  # float64, in which sums over processes come in another order than in one process


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found."""
    return several.run(several.of_two, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module", params=[2, 3])
def more(request, tmp_path_factory):
    """What each of two, and of three processes found with many options."""
    return several.run(several.of_more, request.param, tmp_path_factory.mktemp("more"))


@pytest.fixture(scope="module")
def masks():
    """What this process found."""
    return several.masks()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=TOLERANCE, atol=TOLERANCE * float(score.abs().max()))
        assert found[name].dtype == score.dtype


@pytest.mark.parametrize("case", several.BASIC, ids=lambda case: several.key(*case))
def test_two_processes_score_like_one(case, two):
    ((key, expected),) = several.scores([case]).items()
    # They differ between weights, so that equality says something.
    assert len(torch.cat([score.double().flatten() for score in expected.values()]).unique()) > 50
    for process in two:
        assert_same(process["scores"][key], expected)


@pytest.mark.slow
def test_more_processes_score_like_one(more):
    for key, expected in several.scores(several.ALL).items():
        for process in more:
            assert_same(process["scores"][key], expected)


def test_every_method_is_among_the_cases():
    assert {method for method, _, _ in several.BASIC} == set(pathex.methods())


def test_two_processes_prune_like_one(masks, two):
    assert len(masks) == 4
    for kind, mask in masks.items():
        assert mask.sparsity == pytest.approx(0.9, abs=1e-3)
        for process in two:
            assert process["masks"][kind] == mask and process["masks"][kind].metadata == mask.metadata, kind


@pytest.mark.slow
def test_more_processes_prune_like_one(masks, more):
    assert all(process["masks"] == masks for process in more)


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_the_memory_gives_an_odd_number_of_micro_batches(monkeypatch):
    from pathex.scores import reader

    sizes = []
    chunks = []
    run, calibrate = reader.Record.run, reader.calibrate
    monkeypatch.setattr(reader.Record, "run", lambda self, x: (sizes.append(len(x)), run(self, x))[1])
    monkeypatch.setattr(
        reader, "calibrate", lambda m, x, **kw: (chunks.append(kw.get("chunk")), calibrate(m, x, **kw))[1]
    )
    for per_part, expected in ((2, [2, 2, 2, 2, 1]), (0, [1] * 9)):
        pathex.score(several.network(), "px", several.images()[0], memory=several.memory(per_part))
        assert sizes[-len(expected) :] == expected
    assert 1 <= (chunks[-1] or 0) < 5  # several chunks for each of two and three processes


def test_the_work_is_shared(two):
    assert [process["work"]["ran"] for process in two] == [3, 3]


def test_one_process_may_score_by_itself(two):
    x, y = several.images()
    assert_same(two[0]["work"]["alone"], pathex.score(several.network(), "snip", several.batches(x, y)))


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_parts_of_the_images_are_joined_and_the_same_ones_in_another_order_count_once(two):
    x, y = several.joined_parts()
    parts = [pair for part in (slice(0, 5), slice(5, 10)) for pair in several.batches(x[part], y[part])]
    x, y = several.images()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # that of process 0
    other = several.batches(x[order], y[order], 3)
    expected = {
        "px": pathex.score(several.network(), "px", parts, memory=several.memory(2)),
        "snip": pathex.score(several.network(), "snip", parts),
        "px without labels": pathex.score(several.network(), "px", x, memory=several.memory(2)),
        "another order": pathex.score(several.network(), "px", other, memory=several.memory(2)),
        "another order, in train mode": pathex.score(several.network(), "snip", other),
    }
    for process in two:
        assert process["parts"].keys() == expected.keys()
        for name, scores in expected.items():
            assert_same(process["parts"][name], scores)


FAILURES = {
    "an image is NaN": (
        "InvalidInput: process 1 of 2: batch 0 of data holds NaN",
        "InvalidInput: batch 0 of data holds",
    ),
    "unknown method": ("UnknownName: unknown method 'xp'", "UnknownName: process 0 of 2: unknown method 'xp'"),
    "own method": (
        "PathexError: process 1 of 2: one over none (ZeroDivisionError)",
        "ZeroDivisionError: one over none",
    ),
    "shape of scores": (
        "InvalidInput: process 1 of 2: the method's score of 'conv.weight' has shape (2,)",
        "InvalidInput: the method's score of 'conv.weight' has shape (2,)",
    ),
    "loss": ("UnknownName: process 1 of 2: unknown loss 'mine'", "UnknownName: unknown loss 'mine'"),
    "on_round": ("PathexError: process 1 of 2: 'second round' (KeyError)", "KeyError: 'second round'"),
    # The same in both:
    "in every process": ("InvalidInput: memory must be a positive number of bytes",) * 2,
    "seed": ("InvalidInput: seed of process 1 is not that of process 0",) * 2,
    "weights": ("InvalidInput: tensor 'conv.weight' of process 1 is not that of process 0",) * 2,
    "statistics": ("InvalidInput: tensor 'bn.running_mean' of process 1 is not that of process 0",) * 2,
    "rounds": ("InvalidInput: rounds of process 1 is not that of process 0",) * 2,
    "option": ("InvalidInput: option 'redraw' of process 1 is not that of process 0",) * 2,
    "shapes": ("InvalidInput: all images of the pruning set must have one shape, not [(3, 8, 6), (3, 8, 8)]",) * 2,
    "no group": ("InvalidInput: group must be a torch.distributed.ProcessGroup, 'default' or None, not 'some'",) * 2,
}


def test_an_error_in_one_process_and_a_difference_between_them_are_errors_in_all(two):
    for number, process in enumerate(two):
        assert process["failures"].keys() == FAILURES.keys()
        for name, messages in FAILURES.items():
            assert process["failures"][name].startswith(messages[number]), name


def test_a_model_in_ddp_has_the_names_of_the_module(two):
    x, _ = several.images()
    expected = pathex.prune(several.network(), "px", sparsity=0.5, data=x, rounds=2).mask
    for process in two:
        assert process["wrapped"]["ddp"] == expected
        assert all(torch.equal(~process["wrapped"]["zeros"][name], keep) for name, keep in expected.items())


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_groups_score_by_themselves(two):
    x, _ = several.images()
    for rank, process in enumerate(two):
        assert_same(process["wrapped"]["alone"], pathex.score(several.network(), "px", x * (1 + rank)))
        expected = pathex.score(several.network(), "px", x, memory=several.memory(2))
        assert_same(process["wrapped"]["two"], expected)


def test_masks_hold_on_weights_that_are_spread_over_processes(two):
    for process in two:
        found, mask = process["sharded"], process["sharded"]["mask"]
        for name, keep in mask.items():
            for step in range(3):
                assert not found[f"weights {step}"][name][~keep].any()
                assert not found[f"gradients {step}"][name][~keep].any()
                assert found[f"gradients {step}"][name][keep].any()
            assert not torch.equal(found["weights 0"][name], found["weights 2"][name])
            assert torch.equal(found["loaded"][name] != 0, keep)
            assert found["free"][name].all()
            assert torch.equal(found["permanent"][name] != 0, keep)


def test_scores_of_weights_that_are_spread_over_processes_are_refused(two):
    for process in two:
        assert "is spread over processes: score the model before fully_shard" in process["sharded"]["refused"]


def test_the_first_generation_of_fsdp_is_refused():
    class FullyShardedDataParallel(nn.Sequential):
        """Of the name of torch's own, which needs a group."""

    with pytest.raises(InvalidInput, match="flattens weights together"):
        pathex.score(FullyShardedDataParallel(nn.Linear(2, 2)), "px", torch.randn(2, 2))


def test_without_others_a_process_is_alone():
    assert processes_of() is ALONE and processes_of(None) is ALONE
    assert ALONE.all_gather({"a": 1}) == [{"a": 1}] and ALONE.broadcast(1, torch.device("cpu")) == 1
    assert ALONE.map([3, 1], lambda item: item + 1, torch.device("cpu")) == [4, 2]


def test_sums_are_new_tensors_added_in_order():
    same = torch.ones(2, dtype=torch.float64)
    items = iter([1.0, 1e16, -1e16])

    def part(item):
        return {"a": item * same, "b": same.expand(2), "c": same}  # b and c are one tensor, as gradients may be

    found = ALONE.sum_over(items, part)
    assert found["a"].tolist() == [0.0, 0.0]  # (1 + 1e16) - 1e16; in another order it would be 1
    assert found["b"].tolist() == found["c"].tolist() == [3.0, 3.0]
    assert same.tolist() == [1.0, 1.0]


def test_an_error_leaves_a_block_as_it_is():
    with pytest.raises(KeyError, match="mine"), ALONE.barrier(), ALONE.barrier():
        raise KeyError("mine")

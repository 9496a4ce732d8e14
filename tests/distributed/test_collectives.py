"""Several processes find what one does, to the last bits of float64, and share the work."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pathex
import several_processes as several
from pathex.distributed import ALONE, processes_of
from pathex.errors import InvalidInput

TOLERANCE = 1e-9  # float64, in which sums over processes come in another order than in one process


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return several.run(several.of_two, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module", params=[2, 3])
def more(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two, and of three processes found with many options."""
    return several.run(several.of_more, request.param, tmp_path_factory.mktemp("more"))


@pytest.fixture(scope="module")
def masks() -> dict[str, pathex.Mask]:
    """What this process found."""
    return several.masks()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=TOLERANCE, atol=TOLERANCE * float(score.abs().max()))
        assert found[name].dtype == score.dtype


@pytest.mark.parametrize("case", several.BASIC, ids=lambda case: several.key(*case))
def test_two_processes_score_like_one(case: tuple[str, dict[str, Any], int], two: list[dict[str, Any]]) -> None:
    ((key, expected),) = several.scores([case]).items()
    # They differ between weights, so that equality says something.
    assert len(torch.cat([score.double().flatten() for score in expected.values()]).unique()) > 50
    for process in two:
        assert_same(process["scores"][key], expected)


@pytest.mark.slow
def test_more_processes_score_like_one(more: list[dict[str, Any]]) -> None:
    for key, expected in several.scores(several.ALL).items():
        for process in more:
            assert_same(process["scores"][key], expected)


def test_every_method_is_among_the_cases() -> None:
    assert {method for method, _, _ in several.BASIC} == set(pathex.methods())


@pytest.mark.parametrize("kind", ["px", "px in chunks", "adaptive", "effective"])
def test_two_processes_prune_like_one(kind: str, masks: dict[str, pathex.Mask], two: list[dict[str, Any]]) -> None:
    assert masks[kind].sparsity == pytest.approx(0.9, abs=1e-3)
    for process in two:
        assert process["masks"][kind] == masks[kind]
        assert process["masks"][kind].metadata == masks[kind].metadata


@pytest.mark.slow
def test_more_processes_prune_like_one(masks: dict[str, pathex.Mask], more: list[dict[str, Any]]) -> None:
    assert all(process["masks"] == masks for process in more)


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_the_memory_gives_an_odd_number_of_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathex.scores import reader

    sizes: list[int] = []
    chunks: list[int | None] = []
    run, calibrate = reader.Record.run, reader.calibrate
    monkeypatch.setattr(reader.Record, "run", lambda self, x: (sizes.append(len(x)), run(self, x))[1])
    monkeypatch.setattr(
        reader, "calibrate", lambda m, x, **kw: (chunks.append(kw.get("chunk")), calibrate(m, x, **kw))[1]
    )
    for per_part, expected in ((2, [2, 2, 2, 2, 1]), (0, [1] * 9)):
        pathex.score(several.network(), "px", several.images()[0], memory=several.memory(per_part))
        assert sizes[-len(expected) :] == expected
    assert 1 <= (chunks[-1] or 0) < 5  # several chunks for each of two and three processes


def test_the_work_is_shared(two: list[dict[str, Any]]) -> None:
    """Of five batches the first process runs three; the second two, and one again while it waits for the last."""
    assert [process["work"]["ran"] for process in two] == [3, 3]


def test_one_process_may_score_by_itself(two: list[dict[str, Any]]) -> None:
    x, y = several.images()
    assert_same(two[0]["work"]["alone"], pathex.score(several.network(), "snip", several.batches(x, y)))


# -- own parts of the data ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_parts_of_the_images_are_joined(two: list[dict[str, Any]]) -> None:
    x, y = several.joined_parts()
    batches = [pair for part in (slice(0, 5), slice(5, 10)) for pair in several.batches(x[part], y[part])]
    expected = {
        "px": pathex.score(several.network(), "px", batches, memory=several.memory(2)),
        "snip": pathex.score(several.network(), "snip", batches),
        "px without labels": pathex.score(several.network(), "px", several.images()[0], memory=several.memory(2)),
    }
    for process in two:
        for name, scores in expected.items():
            assert_same(process["parts"][name], scores)


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_the_same_images_in_another_order_count_once(two: list[dict[str, Any]]) -> None:
    x, y = several.images()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # that of process 0
    batches = several.batches(x[order], y[order], 3)
    expected = {
        "another order": pathex.score(several.network(), "px", batches, memory=several.memory(2)),
        "another order, in train mode": pathex.score(several.network(), "snip", batches),
    }
    for process in two:
        for name, scores in expected.items():
            assert_same(process["parts"][name], scores)


# -- when something goes wrong -----------------------------------------------------------------------------------------

MESSAGES = {
    "an image is NaN": (None, "InvalidInput: batch 0 of data holds NaN"),
    "unknown method": ("UnknownName: unknown method 'xp'", None),
    "own method": (None, "ZeroDivisionError: one over none"),
    "shape of scores": (None, "InvalidInput: the method's score of 'conv.weight' has shape (2,)"),
    "loss": (None, "UnknownName: unknown loss 'mine'"),
    "on_round": (None, "KeyError: 'second round'"),
}
AFTERWARDS = {
    "an image is NaN": "InvalidInput: process 1 of 2: batch 0 of data holds NaN",
    "unknown method": "UnknownName: process 0 of 2: unknown method 'xp'",
    "own method": "PathexError: process 1 of 2: one over none (ZeroDivisionError)",
    "shape of scores": "InvalidInput: process 1 of 2: the method's score of 'conv.weight' has shape (2,)",
    "loss": "UnknownName: process 1 of 2: unknown loss 'mine'",
    "on_round": "PathexError: process 1 of 2: 'second round' (KeyError)",
}
EVERYWHERE = {
    "in every process": "InvalidInput: memory must be a positive number of bytes",
    "seed": "InvalidInput: seed of process 1 is not that of process 0",
    "weights": "InvalidInput: tensor 'conv.weight' of process 1 is not that of process 0",
    "statistics": "InvalidInput: tensor 'bn.running_mean' of process 1 is not that of process 0",
    "rounds": "InvalidInput: rounds of process 1 is not that of process 0",
    "option": "InvalidInput: option 'redraw' of process 1 is not that of process 0",
    "shapes": "InvalidInput: all images of the pruning set must have one shape, not [(3, 8, 6), (3, 8, 8)]",
    "no group": "InvalidInput: group must be a torch.distributed.ProcessGroup, 'default' or None, not 'some'",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_an_error_in_one_process_is_one_in_all(name: str, two: list[dict[str, Any]]) -> None:
    for process, own in zip(two, MESSAGES[name], strict=True):
        assert process["failures"][name].startswith(own or AFTERWARDS[name])


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_differs_between_processes_is_refused_in_all(name: str, two: list[dict[str, Any]]) -> None:
    for process in two:
        assert process["failures"][name].startswith(EVERYWHERE[name])


def test_nothing_else_was_tried(two: list[dict[str, Any]]) -> None:
    assert all(process["failures"].keys() == {*MESSAGES, *EVERYWHERE} for process in two)


# -- wrapped and sharded models, groups --------------------------------------------------------------------------------


def test_a_model_in_ddp_has_the_names_of_the_module(two: list[dict[str, Any]]) -> None:
    x, _ = several.images()
    expected = pathex.prune(several.network(), "px", sparsity=0.5, data=x, rounds=2).mask
    for process in two:
        assert process["wrapped"]["ddp"] == expected
        assert all(torch.equal(~process["wrapped"]["zeros"][name], keep) for name, keep in expected.items())


@pytest.mark.filterwarnings("ignore:.* of memory, more than")
def test_groups_score_by_themselves(two: list[dict[str, Any]]) -> None:
    x, _ = several.images()
    for rank, process in enumerate(two):
        assert_same(process["wrapped"]["alone"], pathex.score(several.network(), "px", x * (1 + rank)))
        expected = pathex.score(several.network(), "px", x, memory=several.memory(2))
        assert_same(process["wrapped"]["two"], expected)


def test_masks_hold_on_weights_that_are_spread_over_processes(two: list[dict[str, Any]]) -> None:
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


def test_scores_of_weights_that_are_spread_over_processes_are_refused(two: list[dict[str, Any]]) -> None:
    for process in two:
        assert "is spread over processes: score the model before fully_shard" in process["sharded"]["refused"]


def test_the_first_generation_of_fsdp_is_refused() -> None:
    class FullyShardedDataParallel(nn.Sequential):
        """Of the name of torch's own, which needs a group."""

    with pytest.raises(InvalidInput, match="flattens weights together"):
        pathex.score(FullyShardedDataParallel(nn.Linear(2, 2)), "px", torch.randn(2, 2))


# -- a single process --------------------------------------------------------------------------------------------------


def test_without_others_a_process_is_alone() -> None:
    assert processes_of() is ALONE and processes_of(None) is ALONE
    assert ALONE.all_gather({"a": 1}) == [{"a": 1}] and ALONE.broadcast(1, torch.device("cpu")) == 1
    assert ALONE.map([3, 1], lambda item: item + 1, torch.device("cpu")) == [4, 2]


def test_sums_are_new_tensors_added_in_order() -> None:
    same = torch.ones(2, dtype=torch.float64)
    items: Iterator[float] = iter([1.0, 1e16, -1e16])

    def part(item: float) -> dict[str, Tensor]:
        return {"a": item * same, "b": same.expand(2), "c": same}  # b and c are one tensor, as gradients may be

    found = ALONE.sum_over(items, part)
    assert found["a"].tolist() == [0.0, 0.0]  # (1 + 1e16) - 1e16; in another order it would be 1
    assert found["b"].tolist() == found["c"].tolist() == [3.0, 3.0]
    assert same.tolist() == [1.0, 1.0]


def test_an_error_leaves_a_block_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"), ALONE.barrier(), ALONE.barrier():
        raise KeyError("mine")

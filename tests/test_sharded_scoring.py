"""Weights that are spread over processes are scored as those of one process are, a layer in one piece at a time."""

from typing import Any

import pytest
import torch

import pathex
import several_processes as several
import sharded_scoring as sharded


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return several.run(sharded.of_two, 2, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", sharded.CASES)
def test_scores_are_those_of_one_process(name: str, two: list[dict[str, Any]]) -> None:
    expected = sharded.scored(several.network(), name)
    assert len(torch.cat([score.double().flatten() for score in expected.values()]).unique()) > 50
    for process in two:
        found = process["scores"][name]
        assert found.keys() == expected.keys()
        for weight, score in expected.items():  # float64, in which the processes add in another order
            torch.testing.assert_close(found[weight], score, rtol=1e-9, atol=1e-9 * float(score.abs().max()))


@pytest.mark.parametrize("name", sharded.MASKS)
def test_masks_are_those_of_one_process(name: str, two: list[dict[str, Any]]) -> None:
    expected = sharded.pruned(several.network(), name)
    assert all(process["masks"][name] == expected for process in two)


def test_scores_are_spread_as_the_weights_are(two: list[dict[str, Any]]) -> None:
    assert all(process["placed"] and all(process["placed"]) for process in two)


def test_attention_a_head_of_zeros_and_a_weight_that_is_used_twice(two: list[dict[str, Any]]) -> None:
    x, _ = several.images()
    expected = several.quiet(pathex.score, sharded.Blocks(), "px", x.float())
    assert all(score.any() for score in expected.values())
    for process in two:
        assert process["blocks"].keys() == expected.keys()
        for name, score in expected.items():
            torch.testing.assert_close(process["blocks"][name], score, rtol=1e-5, atol=0)


def test_the_model_is_left_as_it_was(two: list[dict[str, Any]]) -> None:
    assert all(process["as before"] for process in two)


def test_methods_that_need_whole_weights_say_so(two: list[dict[str, Any]]) -> None:
    for process in two:
        refused = process["refused"]
        assert "is spread over processes, and grasp needs whole weights" in refused["grasp"]
        assert "Methods that take such weights: px, px-literal, synflow, " in refused["grasp"]
        assert "shifts='released' needs whole weights" in refused["synflow"]
        assert "<lambda> needs whole weights" in refused["<lambda>"]


def test_a_layer_in_one_piece_at_a_time(two: list[dict[str, Any]]) -> None:
    layer = 300 * 300
    for process in two:
        assert layer <= process["gathered"] < 3 * layer < sum(p.numel() for p in sharded.Deep().parameters()) / 3

import re

import pytest

from pathex.experiments.runs import RunConfig, run_name


def test_a_name_tells_method_model_data_and_sparsity():
    name = run_name(RunConfig(method="ntk-sap", model="timm:resnet18", data="npz:/data/my images.npz", sparsity=0.982))
    assert re.fullmatch(r"ntk-sap-timm_resnet18-npz_my_images\.npz-s0\.982-[0-9a-f]{8}", name)


def test_dense_runs_of_all_sparsities_are_one_run():
    first = RunConfig(
        method="dense", sparsity=0.5, rounds=3, images_per_class=1, start_mask="zeros", prunable=("*.bias",)
    )
    assert run_name(first) == run_name(RunConfig(method="dense", sparsity=0.9))
    assert "-s0-" in run_name(first)
    assert run_name(first) != run_name(RunConfig(method="dense", seed=1))


@pytest.mark.parametrize(
    ("method", "changes", "same"),
    [
        ("small-dense", {"min_per_layer": 3, "start_mask": "zeros", "images_per_class": 7, "pruning_seed": 3}, True),
        ("imp", {"images_per_class": 7, "pruning_seed": 3}, True),
        ("small-dense", {"sparsity": 0.5}, False),
        ("small-dense", {"method_options": {"match": "multiply-adds"}}, False),
        ("small-dense", {"ignore": ("conv",)}, False),
        ("imp", {"method_options": {"levels": 2}}, False),
        ("imp", {"min_per_layer": 3}, False),
        ("imp", {"sanity": "reinit"}, False),
        ("px", {"images_per_class": 7, "pruning_seed": 3}, False),
        ("px", {"out": "elsewhere", "device": "cpu"}, True),
        ("px", {"milestones": [0.5, 0.75]}, True),
        ("px", {"seed": 1}, False),
        ("px", {"epochs": 3}, False),
        ("px", {"milestones": (0.5,)}, False),
        ("px", {"method_options": {"redraw": True}}, False),
        ("px", {"rounds": 100}, False),
    ],
)
def test_names_tell_what_has_an_effect_and_leave_out_the_rest(method, changes, same):
    assert (run_name(RunConfig(method=method, **changes)) == run_name(RunConfig(method=method))) is same

import re

import pytest

from pathex.experiments.runs import RunConfig, run_name


def test_a_name_tells_method_model_data_and_sparsity():
    name = run_name(RunConfig(method="ntk-sap", model="timm:resnet18", data="npz:/data/my images.npz", sparsity=0.982))
    assert re.fullmatch(r"ntk-sap-timm_resnet18-npz_my_images\.npz-s0\.982-[0-9a-f]{8}", name)


def test_place_and_device_are_no_part_of_the_name():
    assert run_name(RunConfig(out="elsewhere", device="cpu")) == run_name(RunConfig())


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"epochs": 3}, {"milestones": (0.5,)}, {"method_options": {"redraw": True}}, {"rounds": 100}],
)
def test_every_other_setting_is(changed):
    assert run_name(RunConfig(**changed)) != run_name(RunConfig())


def test_a_list_of_milestones_is_as_good_as_a_tuple():
    assert run_name(RunConfig(milestones=[0.5, 0.75])) == run_name(RunConfig())


def test_dense_runs_of_all_sparsities_are_one_run():
    first = RunConfig(
        method="dense", sparsity=0.5, rounds=3, images_per_class=1, start_mask="zeros", prunable=("*.bias",)
    )
    assert run_name(first) == run_name(RunConfig(method="dense", sparsity=0.9))
    assert "-s0-" in run_name(first)
    assert run_name(first) != run_name(RunConfig(method="dense", seed=1))

import json
import shutil

import pytest
import torch

import model_factories
import pathex
from experiments.runs.outcomes import mask_of
from pathex.errors import InvalidInput
from pathex.experiments.runs import Preprocessing, RunConfig, run

OWN = {"model": "resnet20", "model_options": {"width": 2}}


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """Finished runs by what is special about them."""
    common = {**small, "epochs": 1, "out": str(tmp_path_factory.mktemp("loading"))}
    special = {
        "plain": OWN,
        "dense": OWN | {"method": "dense"},
        "small-dense": OWN | {"method": "small-dense", "sparsity": 0.5, "model_options": {"width": 4}},
        "rigl": OWN | {"dynamic": "rigl", "dynamic_options": {"every": 1, "until": 1.0}, "batch_size": 16},
        "own code": {"model": "model_factories:tiny", "model_options": {"width": 4}},
    }
    return {name: run(RunConfig(**common | changes)) for name, changes in special.items()}


@pytest.mark.parametrize("name", ["plain", "dense", "small-dense", "rigl"])
def test_the_network_of_a_run_is_the_one_that_was_measured(runs, name, small):
    folder, result = runs[name].folder, runs[name].result
    network, data = pathex.load_run(folder), pathex.data.load(small["data"])
    wanted = Preprocessing(8, tuple(data.mean.tolist()), tuple(data.std.tolist()), data.classes)
    assert network.preprocessing == wanted and not network.training
    images = data.normalise(data.test.images(torch.arange(len(data.test))))
    with torch.no_grad():
        accuracy = (network(images).argmax(1) == data.test.labels).double().mean()
    assert float(accuracy) == pytest.approx(result["test_accuracy"])
    if name in ("plain", "rigl"):
        mask = mask_of(folder, "final_mask" if name == "rigl" else "mask")
        assert all(bool((network.get_parameter(each)[~kept] == 0).all()) for each, kept in mask.items())


def test_a_network_of_ones_own_code_is_given_and_never_imported(runs):
    folder = runs["own code"].folder
    with pytest.raises(InvalidInput, match=r"'model_factories:tiny', which is not imported for a folder; give its"):
        pathex.load_run(folder)
    assert pathex.load_run(folder, model_factories.tiny).preprocessing.size == 8
    with pytest.raises(InvalidInput, match=r"the weights of .* do not fit"):
        pathex.load_run(folder, lambda num_classes, width: torch.nn.Linear(3, num_classes))
    with pytest.raises(InvalidInput, match="the factory returned int"):
        pathex.load_run(folder, lambda width: 3)


def test_what_is_no_finished_run_with_one_network(runs, tmp_path):
    with pytest.raises(InvalidInput, match="no such folder"):
        pathex.load_run(tmp_path / "nowhere")
    folder = shutil.copytree(runs["plain"].folder, tmp_path / "copy")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"tasks": []}))
    with pytest.raises(InvalidInput, match="task 'transfer', which has a network for each of its targets"):
        pathex.load_run(folder)
    (folder / "result.json").unlink()
    with pytest.raises(InvalidInput, match="is not finished"):
        pathex.load_run(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(InvalidInput, match=r"config\.yaml cannot be read"):
        pathex.load_run(folder)

import dataclasses
import json
import shutil

import pytest
import torch

import model_factories
import pathex
from benchmarks import file_sizes
from damage import spoil
from experiments.runs.outcomes import equal, mask_of
from pathex.errors import MaskMismatch
from pathex.experiments.runs import Preprocessing, RunConfig, build_task, run
from pathex.experiments.runs.folder import read_config
from pathex.files import read
from pathex.masks import codes, read_weights, write_mask, write_tensors
from refusals import refused

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
def test_the_network_of_a_run_is_the_one_that_was_measured(runs, name, small, tmp_path):
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
    if name == "plain":
        write_mask(mask, tmp_path / "n.safetensors", "sparse", network)
        assert result["bytes"] == (tmp_path / "n.safetensors").stat().st_size


def test_a_network_of_ones_own_code_is_given_and_what_is_no_finished_run_is_refused(runs, tmp_path):
    own = runs["own code"].folder
    assert pathex.load_run(own, model_factories.tiny).preprocessing.size == 8
    for factory, message in (
        (None, "'model_factories:tiny' comes from a file and is code to be run.*model="),
        (lambda num_classes, width: torch.nn.Linear(3, num_classes), "the weights of .* do not fit"),
        (lambda width: 3, "the factory returned int"),
    ):
        with refused(message):
            pathex.load_run(own, factory)
    with refused("no such folder"):
        pathex.load_run(tmp_path / "nowhere")
    with refused("is no folder of a run: it holds no config.yaml$"):
        pathex.load_run(own.parent)
    folder = shutil.copytree(runs["plain"].folder, tmp_path / "copy")
    values = read(folder / "config.yaml")
    transfer = json.dumps(runs["plain"].result | {"tasks": []})
    for name, content, message in (
        ("result.json", transfer, "task 'transfer', which has a network for each of its targets"),
        ("result.json", '["done"]', "result.json cannot be read"),
        *(
            ("result.json", json.dumps(runs["plain"].result | wrong), "result.json cannot be read")
            for wrong in ({"classes": 5}, {"classes": [1]}, {"normalisation": {"mean": "a"}}, {"image_size": "8"})
        ),
        *(
            ("config.yaml", json.dumps(values | wrong), rf"config.yaml cannot be read \({next(iter(wrong))} ")
            for wrong in ({"model_options": [2]}, {"epochs": "x"}, {"milestones": 5}, {"model": 3}, {"sparsity": 2})
        ),
        ("result.json", None, "is not finished"),
        ("config.yaml", None, r"holds no config\.yaml"),
    ):
        spoil(folder / name, content)
        with refused(message):
            pathex.load_run(folder)
        if content is not None:
            spoil(folder / name, (runs["plain"].folder / name).read_bytes())


@pytest.mark.parametrize("name", ["plain", "own code"])
def test_a_ticket_file_gives_the_mask_and_the_initial_network_back(runs, name, tmp_path):
    made, factory = runs[name], model_factories.tiny if name == "own code" else None
    path = tmp_path / "ticket.safetensors"
    with refused("must end in one of .safetensors"):
        pathex.save_ticket(made.folder, tmp_path / "ticket.pt", factory)
    pathex.save_ticket(made.folder, path, factory)
    network, mask = pathex.load_ticket(path, factory)
    assert mask == mask_of(made.folder) and not network.training
    assert equal(network.state_dict(), build_task(read_config(made.folder)).model.state_dict())
    write_mask(mask, tmp_path / "sparse.safetensors", "sparse", network)
    assert path.stat().st_size < (tmp_path / "sparse.safetensors").stat().st_size


def test_a_ticket_file_takes_little_more_than_the_entropy_of_its_mask(runs, tmp_path):
    config = RunConfig(method="random", sparsity=0.982, epochs=0, data=read_config(runs["plain"].folder).data)
    folder = run(dataclasses.replace(config, images_per_class=1, out=str(tmp_path))).folder
    pathex.save_ticket(folder, tmp_path / "ticket.safetensors")
    assert (tmp_path / "ticket.safetensors").stat().st_size < 1.3 * file_sizes.entropy(mask_of(folder))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dense", {}, "no finished run with a mask"),
        ("plain", {"weights": "w.pt"}, "starts from weights 'w.pt'"),
        ("plain", {"method": "imp"}, "is of method 'imp', which trains"),
        ("plain", {"sanity": "reinit"}, "has other weights"),
        ("plain", {"torch": "1.0"}, "was made with torch 1.0, here is"),
    ],
)
def test_runs_without_a_ticket_file(runs, name, changes, message, tmp_path):
    folder = shutil.copytree(runs[name].folder, tmp_path / "copy")
    file = folder / ("environment.json" if "torch" in changes else "config.yaml")
    file.write_text(json.dumps({**read(file), **changes}))
    with refused(message):
        pathex.save_ticket(folder, tmp_path / "ticket.safetensors")
    assert not (tmp_path / "ticket.safetensors").exists()


def test_ticket_files_that_cannot_be_read(runs, tmp_path):
    path = tmp_path / "t.safetensors"
    pathex.save_ticket(runs["plain"].folder, path)
    entries, facts = codes.unpack(read_weights(path))
    for place in (0.3, 0.6, 0.9):
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 4
        spoil(tmp_path / "flipped.safetensors", bytes(data))
        with refused("flipped.safetensors"):
            pathex.load_ticket(tmp_path / "flipped.safetensors")
    for changed, message in (
        ({"seed": facts["seed"] + 1}, "come out otherwise"),
        ({"options": {"width": 3}}, "come out otherwise"),
        ({"model": "nowhere:factory"}, "comes from a file"),
        ({"seed": 10**40}, "must be an integer in"),
        ({"options": {"num_classes": 3}}, "model 'resnet20': .*num_classes"),
    ):
        write_tensors(codes.pack(entries, **facts | changed), path)
        with refused(message):
            pathex.load_ticket(path)
    for about in ({}, facts | {"classes": "10"}, facts | {"options": [2]}, facts | {"seed": None}):
        write_tensors(codes.pack(entries, **about), path)
        with refused("holds a mask and no ticket", MaskMismatch):
            pathex.load_ticket(path)

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

import pathex
from brute_force.cases import random_mask
from pathex.errors import InvalidInput, MaskMismatch, PathexWarning, UnknownName
from pathex.masks import Mask, read_mask, read_weights, weights_beside, write_mask
from pathex.masks.files import FORMATS
from pathex.pruning import read_allocation

ENDINGS = dict.fromkeys(FORMATS, (".safetensors", ".pt")) | {"pathex": (".safetensors",)}
HOLDS = {"tensors": "0.weight", "torch-prune": "0.weight_mask", "compressed-tensors": "0.bitmask", "zeros": "0.weight"}
CASES = [(form, ending) for form, endings in ENDINGS.items() for ending in endings]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5))


def masked(model, seed=0):
    return Mask(random_mask(model, seed, 0.5), {"method": "by hand"})


@pytest.mark.parametrize(("form", "ending"), CASES)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999))
def test_every_form_is_read_back(tmp_path, form, ending, seed):
    model, path = network(seed), tmp_path / f"file{ending}"
    mask = masked(model, seed)
    write_mask(mask, path, form, model)
    assert read_mask(path) == read_mask(path, model) == mask
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert form == "pathex" or HOLDS[form] in read_weights(path)
    beside = weights_beside(path)
    if form in {"pathex", "tensors"}:
        assert beside is None
    else:
        assert beside is not None and beside.keys() == model.state_dict().keys()
        assert all(torch.equal(beside[name] * mask[name], model.get_parameter(name) * mask[name]) for name in mask)
        assert torch.equal(beside["0.bias"], model[0].bias)


def test_what_others_write_is_recognised(tmp_path):
    model = network()
    mask = masked(model)
    torch.save({"state_dict": {f"module.{n}": e.float() for n, e in mask.items()}}, tmp_path / "floats.pth")
    save_file({name: entry.to(torch.uint8) for name, entry in mask.items()}, tmp_path / "bytes.safetensors")
    for name, entry in mask.items():
        torch_prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", entry)
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    assert all(read_mask(path) == mask for path in tmp_path.iterdir())


def test_metadata_stay_and_what_a_file_does_not_name_is_dense(tmp_path):
    model = network()
    write_mask(masked(model), tmp_path / "m.safetensors")
    assert read_mask(tmp_path / "m.safetensors", model).metadata == {"method": "by hand"}
    write_mask(Mask({"3.weight": masked(model)["3.weight"]}), tmp_path / "m.pt", "tensors")
    found = read_mask(tmp_path / "m.pt", model)
    assert list(found) == ["0.weight", "3.weight"] and found["0.weight"].all()
    assert found["3.weight"].equal(masked(model)["3.weight"])
    with pytest.raises(MaskMismatch, match=r"removes weights of '3\.weight', which is not prunable"):
        read_mask(tmp_path / "m.pt", model, ignore=["3"])
    torch.save(model.state_dict(), tmp_path / "w.pt")  # dense weights are no silent start
    with pytest.warns(PathexWarning, match=r"no weight in .*w\.pt is zero: the mask keeps everything"):
        assert read_mask(tmp_path / "w.pt", model).sparsity == 0


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


UNREADABLE = {
    "no mask file": lambda path: None,
    "no readable torch file|no torch file": lambda path: path.write_bytes(b"text"),
    "could run code": lambda path: torch.save({"a": Harmful()}, path),
    "no torch file of tensors only|no readable": lambda path: path.write_bytes(pickle.dumps({"a": Harmful()})),
    "holds no state dict": lambda path: torch.save({"a": 1}, path),
    "no floating-point tensor has two": lambda path: torch.save({"a": torch.tensor([0.5])}, path),
}


@pytest.mark.parametrize("message", UNREADABLE)
def test_unreadable_files_are_refused_in_one_line(message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    UNREADABLE[message](tmp_path / "m.pt")
    with pytest.raises(InvalidInput, match=message) as caught:
        read_mask(tmp_path / "m.pt")
    assert "\n" not in str(caught.value) and not (tmp_path / "harm").exists()


def test_files_that_cannot_be_written(tmp_path):
    model = network()
    mask = masked(model)
    with pytest.raises(UnknownName, match=r"unknown mask format 'zip'\. Known: compressed-tensors, pathex"):
        write_mask(mask, tmp_path / "m.pt", "zip")
    with pytest.raises(InvalidInput, match=r"m\.npz' must end in one of \.safetensors, \.pt, \.pth, \.bin"):
        write_mask(mask, tmp_path / "m.npz", "tensors")
    for form in FORMATS[2:]:
        with pytest.raises(InvalidInput, match=f"the mask format '{form}' needs weights"):
            write_mask(mask, tmp_path / "m.pt", form)
    for ending in (".safetensors", ".pt"):
        with pytest.raises(InvalidInput, match=r"cannot write .*nowhere"):
            write_mask(mask, tmp_path / "nowhere" / f"m{ending}", "tensors")
    assert not list(tmp_path.iterdir())


def test_allocations_come_from_files(tmp_path):
    (tmp_path / "a.yaml").write_text("0.weight: 0.5\n3.weight: 1\n")
    (tmp_path / "a.json").write_text(json.dumps({"0.weight": 0.5, "3.weight": 1}))
    for name in ("a.yaml", "a.json"):
        assert read_allocation(str(tmp_path / name)) == {"0.weight": 0.5, "3.weight": 1}
    mask = masked(network())
    write_mask(mask, tmp_path / "m.pt", "tensors")
    assert read_allocation(tmp_path / "m.pt") == mask
    assert read_allocation(mask) is mask and read_allocation("erk") == "erk"
    same = {"0.weight": 0.5}
    assert read_allocation(same) is same


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("a: [", "cannot be read: "),
        ("- 1", "must hold weight names with densities"),
        ("", "must hold weight names with densities"),
        ("a: half", "must hold weight names with densities"),
        ("1: 0.5", "must hold weight names with densities"),
    ],
)
def test_files_without_an_allocation_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        read_allocation(str(tmp_path / "a.yaml"))
    assert "\n" not in str(caught.value) and "a.yaml" in str(caught.value)
    with pytest.raises(UnknownName, match=r"unknown allocation 'globall'\. Did you mean 'global'"):
        read_allocation("globall")


@pytest.mark.data
@pytest.mark.skipif("PATHEX_DATA" not in os.environ, reason="PATHEX_DATA is not set")
def test_a_sparse_checkpoint_is_a_start(tmp_path):
    path = Path(os.environ["PATHEX_DATA"]) / "checkpoints" / "squeezenet1_0-pruned33-imagenet.safetensors"
    with safe_open(path, "pt") as file:
        kept = {name: int(file.get_tensor(name).count_nonzero()) for name in file.keys() if "weight" in name}  # noqa: SIM118
    model = pathex.models.create("torchvision:squeezenet1_0", 1000, 3, weights=path)
    start = read_mask(path, model)
    assert {name: count.kept for name, count in start.counts().items()} == kept
    assert start == pathex.masks.formats.from_zeros(model) and round(start.density, 3) == 0.334
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result = pathex.prune(model, "magnitude", sparsity=0.9, data=x, mask=start)
    assert (result.mask - start).kept == 0 and result.mask.kept == round(0.1 * start.total)
    write_mask(start, tmp_path / "c.safetensors", "compressed-tensors", model)
    assert read_mask(tmp_path / "c.safetensors", model) == start

import json
import os
import pickle
from pathlib import Path

import numpy as np
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
from model_factories import small
from pathex.errors import InvalidInput, MaskMismatch, PathexWarning, UnknownName
from pathex.masks import Mask, read_mask, read_weights, weights_beside, write_mask
from pathex.masks.files import FORMATS
from pathex.pruning import read_allocation
from refusals import refused

ENDINGS = dict.fromkeys(FORMATS, (".safetensors", ".pt")) | {"pathex": (".safetensors",)}
HOLDS = {"tensors": "0.weight", "torch-prune": "0.weight_mask"}
HOLDS |= {"sparse": "pathex.codes", "zeros": "0.weight"}


def bits(*values):
    return torch.tensor(values, dtype=torch.bool)


OTHER = Mask({"a": bits(1, 0, 1, 1), "c": bits(1)})


@pytest.fixture
def mask():
    return Mask({"a": bits(1, 0, 1, 1).view(2, 2), "b": bits(0, 0, 1)}, {"method": "px"})


def masked(model, seed=0):
    return Mask(random_mask(model, seed, 0.5), {"method": "by hand"})


def test_is_a_mapping_of_copies_that_counts(mask):
    assert list(mask) == ["a", "b"] and "b" in mask and len(mask) == 2
    assert mask.counts() == {"a": (3, 4), "b": (1, 3)}
    assert (mask.kept, mask.total) == (4, 7)
    assert mask.density == pytest.approx(4 / 7) and mask.sparsity == pytest.approx(3 / 7)
    first, second, total = mask.summary().splitlines()
    assert first.split() == ["a", "2x2", "3", "of", "4", "density", "0.7500"]
    assert second.split()[0] == "b"
    assert total.split() == ["total", "4", "of", "7", "density", "0.5714"]
    source = bits(1, 0)
    copied = Mask({"a": source})
    source[:] = False
    assert copied.kept == 1


def test_algebra_and_equality_of_names_shapes_and_bits_but_not_metadata(mask):
    other = Mask({"a": bits(1, 1, 0, 1).view(2, 2), "b": bits(0, 0, 0)})
    assert (mask & other) == Mask({"a": bits(1, 0, 0, 1).view(2, 2), "b": bits(0, 0, 0)})
    assert (mask | other) == Mask({"a": bits(1, 1, 1, 1).view(2, 2), "b": bits(0, 0, 1)})
    assert (mask - other) == Mask({"a": bits(0, 0, 1, 0).view(2, 2), "b": bits(0, 0, 1)})
    assert mask.jaccard(other) == pytest.approx(2 / 5)
    assert mask.jaccard_by_layer(other) == {"a": 0.5, "b": 0.0}
    empty = other - other
    assert empty.jaccard(empty) == 1.0
    assert mask == Mask(dict(mask), {"method": "snip"})
    different = ({"a": mask["a"]}, {**mask, "a": mask["a"].flatten()}, {**mask, "a": ~mask["a"]})
    assert all(mask != Mask(entries) for entries in different) and mask != dict(mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mask: Mask({}), None),
        (lambda mask: Mask({"a": torch.ones(2)}), None),
        (lambda mask: Mask({"a": [True]}), None),
        (lambda mask: mask & OTHER, r"'c' is missing.*'b' is not there.*'a' has shape \(2, 2\).*\(4,\)"),
        (lambda mask: mask.check({**mask, **OTHER}), r"does not fit the tensors: 'a' has shape \(2, 2\) .* \(4,\)"),
    ],
)
def test_what_is_no_mask_or_of_other_tensors_is_refused(mask, call, message):
    mask.check({**mask, "more": torch.ones(1)})
    with pytest.raises(MaskMismatch, match=message):
        call(mask)


def test_files_keep_where_the_mask_came_from_and_know_their_model(tmp_path):
    model, path = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), tmp_path / "m.safetensors"
    data = torch.randn(4, 3)
    mask = pathex.prune(model, "px", sparsity=0.5, data=data, rounds=2, seed=7, calibration="running").mask
    mask.save(path, note="hello")
    loaded = Mask.load(path, model)
    again = pathex.prune(model, "px", sparsity=0.5, data=data.flip(0), rounds=2).mask
    expected = {"method": "px", "options": {"calibration": "running"}, "model": "Sequential", "seed": 7}
    expected |= {"requested_sparsity": 0.5, "note": "hello", "pruning_set": again.metadata["pruning_set"]}
    assert {name: loaded.metadata[name] for name in expected} == expected and len(expected["pruning_set"]) == 64
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["pathex_mask"])
    assert header["pathex_version"] == pathex.__version__ and header["sparsity"] == loaded.sparsity
    Mask({"0.weight": torch.ones(2, 3, dtype=torch.bool), "gone.weight": bits(1)}).save(path)
    with pytest.raises(MaskMismatch, match=r"'gone.weight' is not there.*'0.weight' has shape \(2, 3\).*\(4, 3\)"):
        Mask.load(path, nn.Sequential(nn.Linear(3, 4)))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, mask, monkeypatch):
    path = tmp_path / "m.safetensors"
    with refused("JSON"):
        mask.save(path, note=object())
    assert not list(tmp_path.iterdir())
    with refused("cannot write"):
        mask.save(tmp_path / "nowhere" / "m.safetensors")
    mask.save(path)

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with refused("No space left"):
        (mask - mask).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert Mask.load(path) == mask


def test_a_truncated_file_and_a_flipped_bit_are_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    Mask({"w": torch.rand(64, 9) < 0.5}).save(path)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MaskMismatch):
            Mask.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(MaskMismatch, match="its digest is another"):
        Mask.load(path)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def written(content):
    return lambda path: path.write_bytes(content)


def saved(content):
    return lambda path: torch.save(content, path)


def forged(**header):
    good = {"schema": 1, "shapes": {"a": [2, 2]}, "metadata": {}}
    entries = {"a": torch.zeros(1, dtype=torch.uint8)}
    return lambda path: save_file(entries, path, {"pathex_mask": json.dumps(good | header)})


FILES = {Mask.load: "m.safetensors", read_mask: "m.pt", read_allocation: "a.yaml"}
PICKLED = pickle.dumps({"a": Harmful()})
NAMES = "must hold weight names with densities"


@pytest.mark.parametrize(
    ("read", "write", "message"),
    [
        (Mask.load, lambda path: None, "no mask file"),
        (Mask.load, written(b"a text\n"), "not a readable"),
        (Mask.load, written(pickle.dumps({"a": 1})), "readable"),
        (Mask.load, lambda path: save_file({"a": torch.zeros(1)}, path), "but no pathex mask"),
        (Mask.load, lambda path: save_file({"a": torch.zeros(1)}, path, {"pathex_mask": "[]"}), "holds tensors"),
        (Mask.load, forged(schema=2), "schema 2"),
        (Mask.load, forged(shapes={"a": [2, 2], "b": [1]}), r"differ in \['b'\]"),
        (Mask.load, forged(shapes={"a": [3, 3]}), "holds 1 bytes"),
        (Mask.load, forged(shapes={"a": "big"}), "header cannot be read"),
        (Mask.load, forged(shapes={"a": [-2, -2]}), "cannot be read"),
        (Mask.load, forged(metadata=[1]), "damaged"),
        (Mask.load, lambda path: path.mkdir(), "is a mask|no mask file"),
        (read_mask, lambda path: None, "no mask file"),
        (read_mask, written(b"text"), "no readable torch file|no torch file"),
        (read_mask, saved({"a": Harmful()}), "could run code"),
        (read_mask, written(PICKLED), "no torch file of tensors only|no readable"),
        (read_mask, saved({"a": 1}), "holds no state dict"),
        (read_mask, saved({"a": torch.tensor([0.5])}), "no floating-point tensor has two"),
        (read_allocation, lambda path: None, r"cannot be read \(No such file"),
        (read_allocation, written(b"a: ["), r"cannot be read \("),
        (read_allocation, written(b"- 1"), NAMES),
        (read_allocation, written(b""), NAMES),
        (read_allocation, written(b"a: half"), NAMES),
        (read_allocation, written(b"1: 0.5"), NAMES),
    ],
)
def test_unreadable_files_are_refused(read, write, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / FILES[read]
    write(path)
    with refused(message, MaskMismatch if read == Mask.load else InvalidInput) as caught:
        read(str(path))
    assert (read is read_mask or str(path) in str(caught.value)) and not (tmp_path / "harm").exists()


@pytest.mark.parametrize(("form", "ending"), [(form, ending) for form in ENDINGS for ending in ENDINGS[form]])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999))
def test_every_form_is_read_back(tmp_path, form, ending, seed):
    model, path = small(seed), tmp_path / f"file{ending}"
    mask = masked(model, seed)
    write_mask(mask, path, form, model)
    assert read_mask(path) == read_mask(path, model) == mask and list(read_mask(path)) == list(mask)
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
    model = small()
    mask = masked(model)
    torch.save({"state_dict": {f"module.{n}": e.float() for n, e in mask.items()}}, tmp_path / "floats.pth")
    save_file({name: entry.to(torch.uint8) for name, entry in mask.items()}, tmp_path / "bytes.safetensors")
    for name, entry in mask.items():
        torch_prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", entry)
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    assert all(read_mask(path) == mask for path in tmp_path.iterdir())


def buffered(mask, model):
    """Dense weights with buffers of 0 and 1 beside them, for biases and BatchNorm too."""
    more = {"0.bias_mask": torch.ones(4), "1.weight_mask": torch.ones(4), "1.attn_mask": torch.zeros(2)}
    return model.state_dict() | {f"{name}_mask": entry.float() for name, entry in mask.items()} | more


FOUND = {
    "buffers": lambda mask, model: {"current_epoch": 3, "model": buffered(mask, model)},
    "buffers, wrapped": lambda mask, model: {f"module.model.{n}": t for n, t in buffered(mask, model).items()},
    "masks beside numbers": lambda mask, model: {"masks": {f"net.{n}": e for n, e in mask.items()}, "loss": 0.1},
    "deep": lambda mask, model: {"a": {"b": {n: e.to(torch.uint8) for n, e in mask.items()}, "lr": torch.tensor(0.1)}},
    "COO": lambda mask, model: {n: e.float().to_sparse() for n, e in mask.items()},
    "COO weights": lambda mask, model: {"net": {n: t.to_sparse() for n, t in sparse_state(mask, model).items()}},
    "CSR": lambda mask, model: {
        n: t.to_sparse_csr() if t.dim() == 2 else t for n, t in sparse_state(mask, model).items()
    },
    "an optimizer beside": lambda mask, model: {
        "model_state_dict": sparse_state(mask, model),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1}]},
        "callbacks": {"checkpoint": {"best": torch.tensor(0.5)}},
    },
}


def sparse_state(mask, model):
    return pathex.make_permanent(model, mask).state_dict()


@pytest.mark.parametrize("form", FOUND)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_masks_are_found_in_checkpoints_of_other_programs(form, tmp_path):
    mask = masked(small())
    torch.save(FOUND[form](mask, small()), tmp_path / "c.pt")
    assert read_mask(tmp_path / "c.pt", small()) == mask
    alone = read_mask(tmp_path / "c.pt")
    assert {name.removeprefix("model.").removeprefix("net.") for name in alone} >= set(mask)
    assert not any(name.endswith("_mask") for name in alone)
    if "buffers" in form:
        assert len(weights_beside(tmp_path / "c.pt")) == len(small().state_dict()) + 1


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64, None])
def test_arrays_of_numpy_are_masks(prefix, dtype, tmp_path):
    mask, path = masked(small()), tmp_path / "m.npz"
    tensors = sparse_state(mask, small()) if dtype is None else mask
    np.savez(path, **{prefix + n: t.numpy().astype(dtype or t.numpy().dtype) for n, t in tensors.items()})
    assert read_mask(path, small()) == mask


def test_arrays_that_are_no_weights_are_refused(tmp_path):
    for array, message in (([{}], "no readable npz file: .*Object arrays"), (["a"], "'a' is not a tensor")):
        np.savez(tmp_path / "m.npz", a=np.array(array))
        with refused(message):
            read_mask(tmp_path / "m.npz")


def test_of_several_state_dicts_the_choice_is_said(tmp_path):
    mask, dense = masked(small()), small(5).state_dict()
    held = sparse_state(mask, small())
    for content, read, left in (
        ({"net": held, "ema": dense}, "net", "ema"),
        ({"optimizer": {"momentum": dense}, "state_dict": held}, "state_dict", "optimizer.momentum"),
        ({"model": dense, "masks": dict(mask)}, "masks", "model"),
    ):
        torch.save(content, tmp_path / "c.pt")
        with pytest.warns(PathexWarning, match=f"'{read}' is read, not {left}"):
            assert read_mask(tmp_path / "c.pt", small()) == mask
    with pytest.warns(PathexWarning, match="'model' is read, not masks"):
        assert torch.equal(read_weights(tmp_path / "c.pt")["0.weight"], dense["0.weight"])
    torch.save({"generator": held, "critic": dense}, tmp_path / "c.pt")
    with refused(r"several state dicts \(generator, critic\): save one"):
        read_mask(tmp_path / "c.pt")
    torch.save({**held, "epoch": 3, "ema": dense}, tmp_path / "c.pt")
    with refused("no state dict: 'epoch' is not a tensor"):
        read_mask(tmp_path / "c.pt")


def test_biases_and_normalisation_that_others_prune_stay_dense(tmp_path):
    model = small()
    for path, name in (("0", "weight"), ("0", "bias"), ("1", "weight"), ("4", "weight")):
        torch_prune.l1_unstructured(model.get_submodule(path), name, 0.5)
    expected = Mask({name: model.state_dict()[f"{name}_mask"] == 1 for name in ("0.weight", "4.weight")})
    torch.save({"state_dict": {f"net.{n}": t for n, t in model.state_dict().items()}, "epoch": 1}, tmp_path / "m.ckpt")
    with pytest.warns(
        PathexWarning, match=r"removes weights of 0\.bias, 1\.weight, which are not prunable .* stay dense"
    ):
        assert read_mask(tmp_path / "m.ckpt", small()) == expected
    whole = read_mask(tmp_path / "m.ckpt", small(), prunable=["*.weight", "0.bias"])
    assert whole["1.weight"].sum() == 2 and (whole["0.weight"] == expected["0.weight"]).all()


def test_metadata_stay_and_what_a_file_does_not_name_is_dense(tmp_path):
    model = small()
    write_mask(masked(model), tmp_path / "m.safetensors")
    assert read_mask(tmp_path / "m.safetensors", model).metadata == {"method": "by hand"}
    write_mask(Mask({"4.weight": masked(model)["4.weight"]}), tmp_path / "m.pt", "tensors")
    found = read_mask(tmp_path / "m.pt", model)
    assert list(found) == ["0.weight", "4.weight"] and found["0.weight"].all()
    assert found["4.weight"].equal(masked(model)["4.weight"])
    with pytest.warns(PathexWarning, match=r"removes weights of 4\.weight, which are not prunable .* stay dense"):
        assert read_mask(tmp_path / "m.pt", model, ignore=["4"]).kept == 36
    torch.save(model.state_dict(), tmp_path / "w.pt")  # dense weights are no silent start
    with pytest.warns(PathexWarning, match=r"no weight in .*w\.pt is zero: the mask keeps everything"):
        assert read_mask(tmp_path / "w.pt", model).sparsity == 0


def test_files_that_cannot_be_written(tmp_path):
    mask = masked(small())
    for path, form, message in (
        ("m.pt", "zip", r"unknown mask format 'zip'\. Known: pathex, sparse"),
        ("m.npz", "tensors", r"m\.npz' must end in one of \.safetensors, \.pt, \.pth, \.bin"),
        *(("m.pt", form, f"the mask format '{form}' needs weights") for form in FORMATS[2:]),
        *((f"nowhere/m{ending}", "tensors", r"cannot write .*nowhere") for ending in (".safetensors", ".pt")),
    ):
        with refused(message, UnknownName if form == "zip" else InvalidInput):
            write_mask(mask, tmp_path / path, form)
    assert not list(tmp_path.iterdir())


def test_allocations_come_from_files(tmp_path):
    mask, densities = masked(small()), {"0.weight": 0.5, "4.weight": 1}
    (tmp_path / "a.yaml").write_text("0.weight: 0.5\n4.weight: 1\n")
    (tmp_path / "a.json").write_text(json.dumps(densities))
    for name in ("a.yaml", "a.json"):
        assert read_allocation(str(tmp_path / name)) == densities
    write_mask(mask, tmp_path / "m.pt", "tensors")
    assert read_allocation(tmp_path / "m.pt") == mask
    assert all(read_allocation(same) is same for same in (mask, densities)) and read_allocation("erk") == "erk"
    with refused(r"unknown allocation 'globall'\. Did you mean 'global'", UnknownName):
        read_allocation("globall")


@pytest.mark.data
def test_a_sparse_checkpoint_is_a_start(data_folder, tmp_path):
    path = data_folder / "checkpoints" / "squeezenet1_0-pruned33-imagenet.safetensors"
    with safe_open(path, "pt") as file:
        kept = {name: int(file.get_tensor(name).count_nonzero()) for name in file.keys() if "weight" in name}  # noqa: SIM118
    model = pathex.models.create("torchvision:squeezenet1_0", 1000, 3, weights=path)
    start = read_mask(path, model)
    assert {name: count.kept for name, count in start.counts().items()} == kept
    assert start == pathex.masks.formats.from_zeros(model) and round(start.density, 3) == 0.334
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result = pathex.prune(model, "magnitude", sparsity=0.9, data=x, mask=start)
    assert (result.mask - start).kept == 0 and result.mask.kept == round(0.1 * start.total)
    write_mask(start, tmp_path / "c.safetensors", "sparse", model)
    assert read_mask(tmp_path / "c.safetensors", model) == start

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pathex
from pathex.errors import InvalidInput, MaskMismatch
from pathex.masks import Mask


def bits(*values):
    return torch.tensor(values, dtype=torch.bool)


@pytest.fixture
def mask():
    return Mask({"a": bits(1, 0, 1, 1).view(2, 2), "b": bits(0, 0, 1)}, {"method": "px"})


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


def test_algebra(mask):
    other = Mask({"a": bits(1, 1, 0, 1).view(2, 2), "b": bits(0, 0, 0)})
    assert (mask & other) == Mask({"a": bits(1, 0, 0, 1).view(2, 2), "b": bits(0, 0, 0)})
    assert (mask | other) == Mask({"a": bits(1, 1, 1, 1).view(2, 2), "b": bits(0, 0, 1)})
    assert (mask - other) == Mask({"a": bits(0, 0, 1, 0).view(2, 2), "b": bits(0, 0, 1)})
    assert mask.jaccard(other) == pytest.approx(2 / 5)
    assert mask.jaccard_by_layer(other) == {"a": 0.5, "b": 0.0}
    empty = other - other
    assert empty.jaccard(empty) == 1.0


def test_equality_looks_at_names_shapes_and_bits_but_not_at_metadata(mask):
    assert mask == Mask(dict(mask), {"method": "snip"})
    assert mask != Mask({"a": mask["a"]})
    assert mask != Mask({"a": mask["a"].flatten(), "b": mask["b"]})
    assert mask != Mask({"a": ~mask["a"], "b": mask["b"]})
    assert mask != dict(mask)


@pytest.mark.parametrize("entries", [{}, {"a": torch.ones(2)}, {"a": [True]}])
def test_refuses_what_is_no_mask(entries):
    with pytest.raises(MaskMismatch):
        Mask(entries)


def test_combining_masks_of_different_tensors_names_them(mask):
    with pytest.raises(MaskMismatch, match=r"'c' is missing.*'b' is not there.*'a' has shape \(2, 2\).*\(4,\)"):
        mask & Mask({"a": bits(1, 0, 1, 1), "c": bits(1)})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_files_keep_every_bit(tmp_path, shapes, seed):
    source = torch.Generator().manual_seed(seed)
    mask = Mask({f"layer.{i}": torch.rand(shape, generator=source) < 0.5 for i, shape in enumerate(shapes)})
    mask.save(tmp_path / "m.safetensors")
    assert Mask.load(tmp_path / "m.safetensors") == mask
    assert list(Mask.load(tmp_path / "m.safetensors")) == list(mask)


def test_files_keep_where_the_mask_came_from(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    data = torch.randn(4, 3)
    mask = pathex.prune(model, "px", sparsity=0.5, data=data, rounds=2, seed=7, calibration="running").mask
    mask.save(tmp_path / "m.safetensors", note="hello")
    loaded = Mask.load(tmp_path / "m.safetensors", model)
    found = loaded.metadata
    assert found["method"] == "px" and found["options"] == {"calibration": "running"}
    assert found["model"] == "Sequential" and found["seed"] == 7 and found["requested_sparsity"] == 0.5
    assert len(found["pruning_set"]) == 64 and found["note"] == "hello"
    again = pathex.prune(model, "px", sparsity=0.5, data=data.flip(0), rounds=2).mask
    assert again.metadata["pruning_set"] == found["pruning_set"]
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        header = json.loads(file.metadata()["pathex_mask"])
    assert header["pathex_version"] == pathex.__version__ and header["sparsity"] == loaded.sparsity


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, mask, monkeypatch):
    path = tmp_path / "m.safetensors"
    mask.save(path)

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InvalidInput, match="No space left"):
        (mask - mask).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert Mask.load(path) == mask


def test_metadata_that_no_file_can_hold_are_refused_before_writing(tmp_path, mask):
    with pytest.raises(InvalidInput, match="JSON"):
        mask.save(tmp_path / "m.safetensors", note=object())
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match="cannot write"):
        mask.save(tmp_path / "nowhere" / "m.safetensors")


def _forged(path, **header):
    good = {"schema": 1, "shapes": {"a": [2, 2]}, "metadata": {}}
    save_file({"a": torch.zeros(1, dtype=torch.uint8)}, path, {"pathex_mask": json.dumps(good | header)})


DAMAGE = {
    "no mask file": lambda path: None,
    "not a readable": lambda path: path.write_text("a text\n"),
    "readable": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "but no pathex mask": lambda path: save_file({"a": torch.zeros(1)}, path),
    "holds tensors": lambda path: save_file({"a": torch.zeros(1)}, path, {"pathex_mask": "[]"}),
    "schema 2": lambda path: _forged(path, schema=2),
    r"differ in \['b'\]": lambda path: _forged(path, shapes={"a": [2, 2], "b": [1]}),
    "holds 1 bytes": lambda path: _forged(path, shapes={"a": [3, 3]}),
    "header cannot be read": lambda path: _forged(path, shapes={"a": "big"}),
    "cannot be read": lambda path: _forged(path, shapes={"a": [-2, -2]}),
    "damaged": lambda path: _forged(path, metadata=[1]),
    "is a mask|no mask file": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_unreadable_files_are_refused_in_one_line(message, tmp_path):
    path = tmp_path / "m.safetensors"
    DAMAGE[message](path)
    with pytest.raises(MaskMismatch, match=message) as caught:
        Mask.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_truncated_file_and_a_flipped_bit_are_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    Mask({"w": torch.rand(64, 9) < 0.5}).save(path)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(MaskMismatch):
            Mask.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(MaskMismatch, match="not those that were written"):
        Mask.load(path)


def test_a_mask_of_another_model_lists_what_does_not_fit(tmp_path):
    mask = Mask({"0.weight": torch.ones(2, 3, dtype=torch.bool), "gone.weight": bits(1)})
    mask.save(tmp_path / "m.safetensors")
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(MaskMismatch, match=r"'gone.weight' is not there.*'0.weight' has shape \(2, 3\).*\(4, 3\)"):
        Mask.load(tmp_path / "m.safetensors", model)
    mask = Mask({"a": bits(1, 0)})
    mask.check({"a": torch.ones(2), "b": torch.ones(1)})
    with pytest.raises(MaskMismatch, match=r"does not fit the tensors: 'a' has shape \(2,\) .* \(3,\)"):
        mask.check({"a": torch.ones(3)})

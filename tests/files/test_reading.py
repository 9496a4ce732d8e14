"""Files of strangers: one line within a second, and never another exception."""

import io
import json
import os
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from pathex.data import choose_classes, load
from pathex.errors import InvalidInput
from pathex.files import open_image, read, read_file, read_npz, read_torch
from pathex.masks import Mask, codes, read_mask
from pathex.models import create, load_weights
from pathex.pruning import read_allocation
from refusals import refused

SECONDS = 3.0  # one on a quiet machine


def by_merging(count):
    return "a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}\n" for n in range(count))


TEXTS = {
    "deep.json": ("[" * 100_000, "RecursionError|nested deeper"),
    "levels.json": ("[" * 500 + "]" * 500, "nested deeper than 100 levels"),
    "twice.json": ('{"a": 1, "a": 2}', "key 'a' is there twice"),
    "digits.json": ('{"a": ' + "9" * 5000 + "}", "more than 100 digits"),
    "large.json": (" " * (2**25 + 1), "more than the 33,554,432 bytes allowed for JSON"),
    "utf16.json": ("{}".encode("utf-16"), "UnicodeDecodeError"),
    "lines.jsonl": ('{"a": 1}\n{"a"', "JSONDecodeError"),
    "deep.yaml": ("[" * 5000, "RecursionError|nested deeper"),
    "indented.yaml": ("- " * 5000, "RecursionError|nested deeper|Error"),
    "keys.yaml": ("".join(f"a{n}: 1\n" for n in range(30_000)), "bytes allowed for YAML|more than 20,000 values"),
    "values.yaml": (f"[{'0,' * 100_000}0]", "more than 20,000 values"),
    "twice.yaml": ("a: 1\na: 2", "key 'a' is there twice"),
    "digits.yaml": ("a: " + "9" * 5000, "more than 100 digits"),
    "hex.yaml": ("a: 0x" + "f" * 5000, "more than 100 digits"),
    "sixty.yaml": ("a: 1" + ":59" * 5000, "more than 100 digits"),
    "circle.yaml": ("a: &a [*a]", "nested deeper than 100 levels"),
    "laughs.yaml": (
        "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}, *a{n}]\n" for n in range(40)),
        "more than 1,000,000 lists",
    ),
    "merged.yaml": (by_merging(60), "several mappings are merged"),
    "large.yaml": ("a" * (2**18 + 1), "more than the 262,144 bytes allowed for YAML"),
    "code.yaml": ("!!python/object/apply:os.mkdir [harm]", "ConstructorError"),
    "binary.txt": (b"\xff\xfe\x00", "UnicodeDecodeError"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_ask_for_too_much(name, tmp_path):
    content, message = TEXTS[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.monotonic()
    with refused(rf"{name}' cannot be read \(.*({message})"):
        read(path)
    assert time.monotonic() - began < SECONDS


def test_plain_texts_are_read(tmp_path):
    for name, content, found in (
        ("a.yaml", "\ufeffa: &a {x: 1}\nb: {<<: *a, y: 2}", {"a": {"x": 1}, "b": {"x": 1, "y": 2}}),
        ("a.json", '{"sha256": "of something else"}', {"sha256": "of something else"}),
        ("a.jsonl", "1\n\n2\n", [1, 2]),
        ("b.yaml", "a: 1e5\nb: 0.5", {"a": "1e5", "b": 0.5}),  # as what `yaml.safe_dump` writes of text
        ("a.txt", "a\nb", "a\nb"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read(tmp_path / name) == found


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("use", [read, read_file, read_mask, read_torch, read_npz, Mask.load, read_allocation])
def test_pipes_are_not_waited_for(use, tmp_path):
    for place in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        if place.name == "pipe.yaml":
            os.mkfifo(place)
        with pytest.raises(InvalidInput):
            use(place)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_among_images_is_named(tmp_path):
    for part in ("train", "test"):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / label / "1.png")
    os.mkfifo(tmp_path / "train" / "a" / "2.png")
    with refused(r"a/2.png' cannot be read \(it is no regular file\)"):
        load(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (13_000, 13_000)])
def test_images_that_no_memory_bounds(size):
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    file.seek(0)
    with warnings.catch_warnings(), pytest.raises(InvalidInput, match=rf"{size[0]} x {size[1]} pixels; allowed"):
        warnings.simplefilter("ignore")  # Pillow's own
        open_image(file)


def test_a_billion_classes(tmp_path):
    with refused("num_classes must be an integer in 1..1000000, got 1000000000"):
        create("resnet20", num_classes=10**9)
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 10**9])
    arrays = {"train_images": images, "test_images": images, "train_labels": labels, "test_labels": labels}
    np.savez(tmp_path / "a.npz", **arrays)
    for options, message in (({}, "reach 1000000000"), ({"num_classes": 10**9 + 1}, r"integer in 1\.\.1000000")):
        with refused(message):
            load(f"npz:{tmp_path / 'a.npz'}", **options)


def torch_file(**tensors):
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, says torch
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def header(shape, size=4):
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def npz_that_claims(shape):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", member.getvalue())
    return file.getvalue()


def coded(entries, code=b""):
    packed = codes.pack({"a": torch.ones(2, 2, dtype=torch.bool)})
    table = zlib.compress(json.dumps({"entries": entries, "facts": {}}).encode())
    packed[codes.TABLE] = torch.frombuffer(bytearray(table), dtype=torch.uint8)
    if code:
        packed[codes.CODES] = torch.frombuffer(bytearray(code), dtype=torch.uint8)
    return save(packed)


SPARSE = torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6), check_invariants=True)
TENSORS = {
    "meta.pt": (torch_file(a=torch.ones(2, 2, device="meta")), "'a' is a tensor without values"),
    "nested.pt": (torch_file(a=nested()), "'a' is a tensor without values, nested|no readable|no torch file"),
    "strides.pt": (torch_file(a=torch.ones(1).expand(10**5, 10**5)), "'a' claims 4e.10 bytes"),
    "many.pt": (torch_file(**{f"a{n}": torch.ones(1).expand(10**4, 10**4) for n in range(9)}), "claims .* bytes"),
    "sparse.pt": (torch_file(a=SPARSE), "claims 4e.12"),
    "empty.pt": (torch_file(a=torch.ones(0, 3)), "."),
    "shape.safetensors": (header([10**30]), "no readable safetensors file"),
    "product.safetensors": (header([2**40, 2**40]), "no readable safetensors file"),
    "short.safetensors": (header([10**6]), "no readable safetensors file"),
    "claims.npz": (npz_that_claims((10**10, 10**20)), "no readable npz file"),
    "text.npz": (b"no archive", "no readable npz"),
    "shapes.safetensors": (coded({"a": [[10**15, 10**15], 10]}), "claims 1e.30 bytes"),
    "negative.safetensors": (coded({"a": [[-2, -2], 10]}), "negative size"),
    "lengths.safetensors": (coded({"a": [[2, 2], 10**30]}), "is damaged"),
    "infinite.safetensors": (coded({"a": [[float("inf")], 10]}), "is damaged"),
    "width.safetensors": (coded({"a": [[2, 2], 11]}, bytes([200, 1, 1, *bytes(8)])), "is damaged|does not hold"),
    "count.safetensors": (coded({"a": [[2, 2], 11]}, bytes([1, 1, *[255] * 9])), "does not hold"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_claim_too_much(name, tmp_path):
    content, message = TENSORS[name]
    path = tmp_path / name
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(InvalidInput, match=message) as caught:
        read_mask(path)
    assert "\n" not in str(caught.value) and time.monotonic() - began < SECONDS


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    model = create("resnet20", width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = dict(create("resnet20", width=4).state_dict())
    last = list(other)[-1]
    for spoiled in (other[last].to(torch.complex64), other[last].to("meta")):
        torch.save({**other, last: spoiled}, tmp_path / "w.pt")
        with refused(rf"'?{last}'?"):
            load_weights(model, tmp_path / "w.pt")
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def classes_of(path):
    return choose_classes(list("abc"), classes=str(path))


SEEDS = [
    ("a.json", b'{"conv.weight": 0.5, "fc.weight": [1, NaN, 1e400, "x"]}', [read, read_allocation, classes_of]),
    ("a.yaml", b"a: &x [1, 0x1F, 1:30]\nb: {<<: {c: .nan}, d: *x}\n", [read, read_allocation, classes_of]),
    ("a.safetensors", save({"a": torch.eye(3)}, {"pathex_mask": '{"schema": 1}'}), [read_file, read_mask, Mask.load]),
    ("b.safetensors", save(codes.pack({"a": torch.eye(9) > 0})), [read_file, read_mask, Mask.load]),
    ("a.pt", torch_file(a=torch.eye(3), b=torch.ones(2)), [read_file, read_mask, read_torch]),
]


@seed(0)
@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_a_file_holds_it_is_read_or_refused(data, tmp_path_factory):
    name, content, uses = data.draw(st.sampled_from(SEEDS))
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "zero", "repeat", "insert"]))
        if how == "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut" and place:
            del content[place:]
        elif how == "zero":
            content[place : place + 16] = bytes(len(content[place : place + 16]))
        elif how == "repeat":
            content[place:place] = content[: place + 1] * data.draw(st.integers(1, 50))
        else:
            content[place:place] = data.draw(st.sampled_from([b"[", b"{", b"&a ", b"*a", b"9" * 200, b"\n- ", b"\xff"]))
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(content)
    for use in uses:
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a mask that keeps everything is worth one
            try:
                use(path)
            except InvalidInput as error:
                assert "\n" not in str(error)
        assert time.monotonic() - began < SECONDS

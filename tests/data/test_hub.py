import io
import sys
import tarfile

import pytest
import torch
from PIL import Image

from pathex.data import ArraySplit, DecodedSplit, load
from refusals import refused

datasets = pytest.importorskip("datasets")
pq = pytest.importorskip("pyarrow.parquet")
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHEX_ROOT", str(tmp_path / "unused"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def picture(value, size=(8, 8)):
    stream = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(stream, format="PNG")
    return {"bytes": stream.getvalue(), "path": None}


def parquet(folder, part, labels, images=None, *, feature=None, start=0, columns=("image", "label"), extra=None):
    folder.mkdir(exist_ok=True, parents=True)
    images = images or [picture(start + number) for number in range(len(labels))]
    content = {columns[0]: images, columns[1]: labels, **(extra or {})}
    features = {columns[0]: datasets.Image(), columns[1]: feature or datasets.ClassLabel(names=NAMES)}
    features |= {name: datasets.Value("int64") for name in extra or {}}
    table = datasets.Dataset.from_dict(content, datasets.Features(features))
    table.to_parquet(folder / f"{part}-00000-of-00001.parquet")


@pytest.fixture
def flowers(tmp_path):
    parquet(tmp_path / "flowers", "train", [2, 0, 1, 0, 1, 2])
    parquet(tmp_path / "flowers", "test", [1, 2, 0], start=100)
    return tmp_path / "flowers"


def test_parquet_in_memory_and_read_by_index_when_needed(flowers):
    data = load(f"hf:{flowers}")
    assert (data.num_classes, data.classes, data.image_size) == (3, tuple(NAMES), 8)
    assert isinstance(data.train, ArraySplit)
    assert data.train.labels.tolist() == [2, 0, 1, 0, 1, 2]
    assert data.train.data[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (data.test.labels.tolist(), data.test.data[:, 0, 3, 3].tolist()) == ([1, 2, 0], [100, 101, 102])
    assert data.mean[0].item() == pytest.approx(2.5 / 255)
    assert data.augment == "crop-flip"
    data = load(f"hf:{flowers}", in_memory=0, image_size=4, mean=0, std=1)
    assert isinstance(data.train, DecodedSplit)
    assert data.train.images(torch.tensor([4, 0, 4]))[:, 0, 0, 0].tolist() == [4, 0, 4]
    some = load(f"hf:{flowers}", in_memory=0, classes=["cat", "ant"])
    assert some.train.labels.tolist() == [0, 1, 1, 0]
    assert some.train.images(torch.arange(4))[:, 0, 0, 0].tolist() == [0, 1, 3, 5]


def test_webdataset_shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for part, labels in (("train", [1, 0, 1, 0]), ("validation", [0, 1])):
        for shard in range(2):
            with tarfile.open(folder / f"{part}-{shard:04d}.tar", "w") as file:
                for number, label in list(enumerate(labels))[shard::2]:
                    for suffix, content in (("png", picture(number)["bytes"]), ("cls", str(label).encode())):
                        entry = tarfile.TarInfo(f"{part}{number:03d}.{suffix}")
                        entry.size = len(content)
                        file.addfile(entry, io.BytesIO(content))
    data = load(f"hf:{folder}")
    assert data.classes == ("0", "1")
    found = sorted(zip(data.train.data[:, 0, 0, 0].tolist(), data.train.labels.tolist(), strict=True))
    assert found == [(0, 1), (1, 0), (2, 1), (3, 0)]
    assert sorted(data.test.labels.tolist()) == [0, 1]


def test_names_of_columns_and_splits(tmp_path):
    folder = tmp_path / "odd"
    for part, labels in (("train", ["b", "a", "b"]), ("holdout", ["a", "b"])):
        parquet(folder / "data", part, labels, feature=datasets.Value("string"), columns=("photo", "kind"))
    with refused("give option 'label_column'; the columns are photo, kind"):
        load(f"hf:{folder}", test_split="holdout")
    with refused(r"no split test or validation or val or valid to test on. There: "):
        load(f"hf:{folder}", label_column="kind")
    data = load(f"hf:{folder}", test_split="holdout", image_column="photo", label_column="kind")
    assert (data.classes, data.train.labels.tolist(), data.test.labels.tolist()) == (("a", "b"), [1, 0, 1], [0, 1])
    folder = tmp_path / "fine"
    for part in ("train", "test"):
        parquet(folder, part, [0, 1, 2], columns=("img", "fine_label"), extra={"coarse_label": [0, 0, 0]})
    assert load(f"hf:{folder}").num_classes == 3  # of two columns the usual one
    assert load(f"hf:{folder}", label_column="coarse_label").num_classes == 1
    folder = tmp_path / "hidden"
    parquet(folder, "train", [0, 1, 2])
    parquet(folder, "test", [-1, -1])
    parquet(folder, "validation", [2, 1, 0], start=50)
    assert load(f"hf:{folder}").test.labels.tolist() == [2, 1, 0]  # a split without labels is passed over
    with refused(r"column 'label' of split 'test' holds .*-1.* in 2 rows"):
        load(f"hf:{folder}", test_split="test")


@pytest.mark.parametrize(
    ("feature", "labels"),
    [("int64", [0, None, 1, None]), ("string", ["a", "b", None, None]), ("names", [None, 0, None, 2])],
)
def test_rows_without_a_label_are_refused(tmp_path, feature, labels):
    folder = tmp_path / "gaps"
    kind = datasets.ClassLabel(names=NAMES) if feature == "names" else datasets.Value(feature)
    parquet(folder, "train", labels, feature=kind)
    parquet(folder, "test", [label for label in labels if label is not None], feature=kind)
    with refused("column 'label' of split 'train' is null in 2 of 4 rows"):
        load(f"hf:{folder}")


def test_a_split_without_labels_is_not_tested_on_and_without_any_a_part_is_cut(tmp_path):
    folder = tmp_path / "only"
    parquet(folder, "train", [0, 1, 2] * 4)
    with refused(r"to test on. There: train; test_fraction=0.2"):
        load(f"hf:{folder}")
    data = load(f"hf:{folder}", test_fraction=0.25)
    assert (data.train.labels.bincount().tolist(), data.test.labels.bincount().tolist()) == ([3] * 3, [1] * 3)
    with refused("test_fraction is 0.25 and test_split 'test'"):
        load(f"hf:{folder}", test_fraction=0.25, test_split="test")
    folder = tmp_path / "unlabelled"
    parquet(folder, "train", [0, 1, 2])
    parquet(folder, "test", [None, None])
    parquet(folder, "validation", [2, 1])
    assert load(f"hf:{folder}").test.labels.tolist() == [2, 1]


def test_imagenet_is_normalised_and_cut_as_usual(tmp_path):
    for part in ("train", "validation"):
        parquet(tmp_path / "mini-imagenet", part, [0, 1, 2], [picture(number, (30, 20)) for number in range(3)])
    data = load(f"hf:{tmp_path / 'mini-imagenet'}")
    assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert isinstance(data.train, DecodedSplit)
    assert (data.train.image_size, data.train.resize, data.augment) == (224, 256, "resized-crop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "learn"}, "no split 'learn'. There: train, test"),
        ({"test_split": "exam"}, "no split exam to test on"),
        ({"test_split": "train"}, "'train' cannot be both training and test split"),
        ({"image_column": "label"}, "'label' is no column of images. Known: image"),
        ({"label_column": "image"}, "'image' holds no classes. Known: label"),
        ({"config": "other"}, "cannot be loaded"),
        ({"resize": 3}, "'resize' .* at least image_size=8, got 3"),
    ],
)
def test_bad_options(flowers, options, message):
    with refused(message):
        load(f"hf:{flowers}", **options)


def test_what_is_missing_or_damaged(tmp_path, monkeypatch):
    folder = tmp_path / "damaged"
    for part, labels in (("train", [0, 2]), ("test", [0, 1])):
        parquet(folder, part, labels, feature=datasets.Value("int64"))
    with refused(r"must number the classes from 0 without gaps, got 2 numbers in 0..2"):
        load(f"hf:{folder}")
    folder = tmp_path / "broken"
    parquet(folder, "train", [0, 1])
    parquet(folder, "test", [0, 1, 2], [{"bytes": b"no image", "path": None}, None, picture(1)])
    with refused(r"in row 0 of .*broken \(test\)' cannot be read .*; 2 of 5 images"):
        load(f"hf:{folder}")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    for absent in (f"{tmp_path}/absent", "./absent", "~/absent/x", "absent/train.parquet", "absent.tar"):
        with refused("data .*absent.*': no such file or folder$"):
            load(f"hf:{absent}")
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    with refused("cannot be loaded"):
        load(f"hf:{tmp_path / 'empty'}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused(r"needs the extra 'hf': pip install 'pathex\[hf\]'"):
        load("hf:uoft-cs/cifar10")


@pytest.mark.parametrize("name", ["../secret.png", "{tmp_path}/secret.png", "there.png", "link.png"])
def test_rows_name_files_of_the_data_set_alone(name, tmp_path):
    folder, named = tmp_path / "named", name.format(tmp_path=tmp_path)
    images = [{"bytes": None, "path": named}] * 3
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2]}, features).data.table
    for part in ("train", "test"):
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / "secret.png")
    Image.new("RGB", (8, 8), (7, 0, 0)).save(folder / "there.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")  # made by whoever owns the folder
    if "secret" in name:
        with refused(f"{named}' is named, which is not below '{folder}'"):
            load(f"hf:{folder}", verify=True)
    else:
        assert load(f"hf:{folder}").train.data[0, 0, 0, 0] == (7 if name == "there.png" else 9)

import pandas as pd
import pytest

from experiments.report.conftest import GRID
from pathex.experiments.report.published import caption, published_for, published_table, setting_of, within
from pathex.experiments.report.records import read_all

SCRATCH = ("cifar10 resnet20", "cifar100 vgg16_bn", "tiny-imagenet resnet18_tiny")
# Curves (nine sparsities, the table of ImageNet two) and dense values of each setting.
CURVES = {
    **{("PX paper", *setting.split(), "random"): (7, 0) for setting in (*SCRATCH, "imagenet resnet50")},
    **{
        ("PX paper", data, "resnet50", weights): (6, 1)
        for data in ("cifar10", "cifar100", "tiny-imagenet")
        for weights in ("imagenet", "mocov2", "clip")
    },
    **{("PX paper", "voc2012", "deeplabv3plus-resnet50", w): (4, 1) for w in ("imagenet", "mocov2", "dino")},
    **{("NTK-SAP paper", *setting.removesuffix("_tiny").split(), "random"): (3, 0) for setting in SCRATCH},
    **{("NTK-SAP paper", "imagenet", network, "random"): (7, 1) for network in ("resnet50", "resnet18")},
}

# Values in per cent as the tables print them, or a flag.
SPOTS = [
    ("PX paper", "cifar10", "resnet20", "random", "ntk-sap", 0.982, "below:0.75"),
    ("PX paper", "cifar10", "resnet20", "random", "synflow", 0.738, "hidden"),
    ("PX paper", "cifar100", "vgg16_bn", "random", "magnitude", 0.982, 66.48),
    ("PX paper", "tiny-imagenet", "resnet18_tiny", "random", "grasp", 0.36, 57.50),
    ("PX paper", "imagenet", "resnet50", "random", "px", 0.8926, 68.11),
    ("PX paper", "imagenet", "resnet50", "random", "snip", 0.956, 45.82),
    ("NTK-SAP paper", "imagenet", "resnet50", "random", "ntk-sap", 0.956, 60.79),
    ("NTK-SAP paper", "imagenet", "resnet18", "random", "iterative-snip", 0.8926, 52.97),
    ("NTK-SAP paper", "cifar10", "resnet20", "random", "ntk-sap", 0.982, 77.7),
    ("NTK-SAP paper", "tiny-imagenet", "resnet18", "random", "snip", 0.9717, 46.1),
    ("PX paper", "cifar10", "resnet50", "clip", "magnitude", 0.9312, 90.5),
    ("PX paper", "cifar100", "resnet50", "mocov2", "grasp", 0.9717, 55.53),
    ("PX paper", "tiny-imagenet", "resnet50", "imagenet", "random", 0.956, "below:0.1"),
    ("PX paper", "tiny-imagenet", "resnet50", "clip", "dense", 0.0, 66.89),
    ("PX paper", "voc2012", "deeplabv3plus-resnet50", "dino", "px", 0.5904, 67.05),
    ("PX paper", "voc2012", "deeplabv3plus-resnet50", "imagenet", "dense", 0.0, 71.70),
]
KEYS = ["source", "data", "model", "weights", "method", "sparsity"]

VOC = {"data": "voc2012", "model": "smp:DeepLabV3Plus", "test_miou": 0.5, "metric": "miou"}
RESNET50 = {"encoder_name": "resnet50", "encoder_output_stride": 8}
TASKS = [{"task": 0, "zero_shot": 0.5, "fine_tuned": 0.6}]


def test_every_setting_has_its_curves_and_a_value_where_it_was_printed_or_read():
    table = published_table()
    assert len(table) == 920
    for setting, rows in table.groupby(KEYS[:4]):
        curves = rows[rows["method"] != "dense"].groupby("method")["sparsity"].apply(tuple)
        assert (len(curves), int((rows["method"] == "dense").sum())) == CURVES[setting], setting
        assert set(curves) == {(0.8926, 0.956) if setting[1] == "imagenet" else GRID}, setting
    assert table.groupby(KEYS[:4]).ngroups == len(CURVES)
    assert not table.duplicated(KEYS).any()
    exact = table["flag"] == "exact"
    assert table["value"].notna().equals(exact)
    assert table.loc[exact, "value"].between(0.1, 0.95).all()
    bounds = {f"below:{bound}" for bound in (0.75, 0.66, 0.4, 0.85, 0.55, 0.1, 0.2)}
    assert set(table.loc[~exact, "flag"]) == bounds | {"hidden"}
    assert table["std"].notna().sum() == 14 and table["std"].max() == 0.0052
    assert set(table.loc[table["reading"] == "printed", "data"]) == {"imagenet"}
    assert table["task"].eq("segmentation").equals(table["data"].eq("voc2012"))


@pytest.mark.parametrize("spot", SPOTS, ids=str)
def test_spot_values(spot):
    table = published_table()
    [row] = table[(table[KEYS] == pd.Series(spot[:-1], index=KEYS)).all(axis=1)].to_dict("records")
    if isinstance(spot[-1], str):
        assert row["flag"] == spot[-1]
    else:
        assert row["value"] == pytest.approx(spot[-1] / 100, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "cifar10 resnet20 random"),
        ({"data": "npz:/somewhere/cifar10.npz"}, "cifar10 resnet20 random"),
        ({"model_options": {"width": 16, "shortcut": "conv"}}, "cifar10 resnet20 random"),
        ({"data": "cifar100", "model": "vgg16_bn"}, "cifar100 vgg16_bn random"),
        ({"data": "imagefolder:/x/tiny-imagenet-200", "model": "resnet18_tiny"}, "tiny-imagenet resnet18_tiny random"),
        ({"data": "imagenet", "model": "torchvision:resnet50"}, "imagenet resnet50 random"),
        ({"model": "timm:resnet50", "weights": "imagenet"}, "cifar10 resnet50 imagenet"),
        ({"model": "timm:resnet50.x", "weights": "a1_in1k"}, "cifar10 resnet50 imagenet"),
        ({"model": "torchvision:resnet50", "weights": "mocov2:/w/moco.pth.tar"}, "cifar10 resnet50 mocov2"),
        ({"data": "cifar100", "model": "timm:resnet50_clip.x", "weights": "openai"}, "cifar100 resnet50 clip"),
        ({"data": "cifar100", "model": "timm:resnet50_clip", "weights": "clip:/RN50"}, "cifar100 resnet50 clip"),
        ({"data": "fashion-mini"}, None),
        ({"model": "resnet32"}, None),
        ({"model_options": {"width": 8}}, None),
        ({"model_options": {"shortcut": "pad"}}, None),
        ({"weights": "/some/file.pth"}, None),
        ({"model": "timm:resnet50", "weights": "fb_swsl_ig1b_ft_in1k_but_not"}, None),
        ({"model": "timm:resnet50", "weights": "fb_swsl_ig1b_ft_in1k"}, None),
        ({"model": "timm:resnet50.fb_swsl_ig1b_ft_in1k", "weights": "imagenet"}, None),
        ({"model": "timm:resnet50.a1_in1k", "weights": "imagenet"}, "cifar10 resnet50 imagenet"),
        ({"data": "imagenet", "model": "timm:resnet50_clip"}, None),
        ({"model": "timm:resnet50_clip", "weights": "yfcc15m"}, None),
        ({"model": "timm:resnet50_clip", "weights": "imagenet"}, "cifar10 resnet50 clip"),
        ({"data": "imagefolder:/data/imagenet", "classes": ["a"] * 10}, None),
        (VOC | {"weights": "dino:w.pth"}, None),
        (VOC | {"weights": "dino:w.pth", "model_options": RESNET50}, "voc2012 deeplabv3plus-resnet50 dino"),
        ({"data": "imagenet", "model": "torchvision:resnet50", "tasks": TASKS}, None),
    ],
    ids=str,
)
def test_a_run_has_a_published_setting_by_data_network_and_weights(make_run, changes, expected):
    [record] = read_all([make_run("px", **{"data": "cifar10", "test_accuracy": 0.5, **changes})])[0]
    task = "segmentation" if "metric" in changes else "classification"
    assert setting_of(record) == (None if expected is None else (*expected.split(), task))


def test_curves_are_those_of_the_methods_that_were_run(make_run):
    folders = [make_run(method, data="cifar10") for method in ("px-cvpr24", "random", "force")]
    found = published_for(read_all(folders)[0])
    assert set(found["method"]) == {"px", "random"}
    assert set(found["source"]) == {"PX paper"}
    assert set(within(found, [0.98199])["sparsity"]) == {0.982}
    assert sorted(within(found, [0.9, 0.95])["sparsity"].unique()) == [0.893, 0.9312, 0.956]
    assert within(found, []).empty
    two = [make_run("px", data="cifar10"), make_run("px", data="cifar10", model_options={"width": 8})]
    assert published_for(read_all(two)[0]).empty  # two settings in one experiment


def test_caption_names_sources_and_doubts_the_pre_trained_panels(make_run):
    for changes, doubt in (({"model": "torchvision:resnet50", "weights": "imagenet"}, True), ({}, False)):
        folder = make_run("ntk-sap", data="cifar10", **changes)
        said = caption(published_for(read_all([folder])[0]))
        assert "PX paper, CVPR 2024, read off its figure to 0.05 points" in said
        assert ("NTK-SAP paper, ICLR 2023, read off its figure to 0.2 points" in said) is not doubt
        assert ("low confidence" in said) is doubt
    assert caption(published_for(read_all([make_run("force")])[0])) == ""

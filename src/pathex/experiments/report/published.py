"""Curves that papers published, and which experiments they belong to."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import pandas as pd

from pathex.experiments.report.records import RunRecord

_FILE = "published.csv"
_SETTING = ("data", "model", "weights", "task")

_CLASSES: Mapping[str, int] = MappingProxyType(
    {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200, "imagenet": 1000, "voc2012": 21}
)
"""How many classes a data set must have to be the published one."""

_SPELLINGS: Mapping[str, str] = MappingProxyType(
    {"cifar-10": "cifar10", "cifar-100": "cifar100", "tiny-imagenet-200": "tiny-imagenet"}
    | dict.fromkeys(("imagenet-1k", "imagenet1k"), "imagenet")
)
"""Other names of data sets, as their folders and files are called."""

_MODELS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "resnet20": ("resnet20", {"width": 16, "shortcut": "conv"}),
        "vgg16_bn": ("vgg16_bn", {"width": 1}),
        "resnet18_tiny": ("resnet18_tiny", {"width": 64}),
        "timm:resnet18": ("resnet18", {}),
        "torchvision:resnet18": ("resnet18", {}),
        "timm:resnet50": ("resnet50", {}),
        "timm:resnet50_clip": ("resnet50", {}),
        "torchvision:resnet50": ("resnet50", {}),
        "smp:DeepLabV3Plus": ("deeplabv3plus-resnet50", {"encoder_name": "resnet50", "encoder_output_stride": 8}),
    }
)
"""Networks by name, timm's without their tag, and the options with which they are the published ones."""

_NEEDED = frozenset({"encoder_name", "encoder_output_stride"})
"""Options whose default is another."""

ALIASES: Mapping[str, str] = MappingProxyType({"px-literal": "px", "px-cvpr24": "px"})
"""Methods that a published curve of another name belongs to as well."""

_KINDS = frozenset({"mocov2", "dino", "clip"})

_IMAGENET = ("in1k", "imagenet1k_v1", "imagenet1k_v2")
"""How tags of weights end that were trained on ImageNet."""

_SOURCES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"PX paper": ("CVPR 2024", "0.05"), "NTK-SAP paper": ("ICLR 2023", "0.2")}
)
"""Where a source appeared, and how far its figures could be read, in points."""

_NEAR = 1.15
_SAME = 0.002


@cache
def published_table() -> pd.DataFrame:
    """All published values: one row for a method of a source at a sparsity."""
    with (files("pathex.experiments.report") / _FILE).open(encoding="utf-8") as stream:
        table: pd.DataFrame = pd.read_csv(stream)
    return table


def no_curves() -> pd.DataFrame:
    """A table without rows."""
    return published_table().iloc[:0]


def published_for(records: Sequence[RunRecord]) -> pd.DataFrame:
    """The published values for the methods of one experiment, if it has a published setting."""
    settings = {setting_of(record) for record in records}
    [setting] = settings if len(settings) == 1 else [None]
    if setting is None:
        return no_curves()
    methods = {ALIASES.get(record.method, record.method) for record in records} | {"dense"}
    table = published_table()
    same = table["method"].isin(methods) & (table[list(_SETTING)] == list(setting)).all(axis=1)
    return table[same]


def within(curves: pd.DataFrame, sparsities: Sequence[float]) -> pd.DataFrame:
    """The values at the one sparsity of some runs, or in the range of several, and those of the dense network."""
    if not sparsities:
        return no_curves()
    lowest, highest = min(sparsities), max(sparsities)
    if lowest == highest:
        inside = (curves["sparsity"] - lowest).abs() < _SAME
    else:
        inside = (1 - curves["sparsity"]).between((1 - highest) / _NEAR, (1 - lowest) * _NEAR)
    return curves[inside | (curves["method"] == "dense")]


def caption(curves: pd.DataFrame) -> str:
    """Where the values come from and how far to trust them."""
    if curves.empty:
        return ""
    said = []
    for source, reading in curves.groupby("source", sort=False)["reading"].first().items():
        place, error = _SOURCES[str(source)]
        how = "its table" if reading == "printed" else f"read off its figure to {error} points"
        said.append(f"{source}, {place}, {how}")
    text = f"Hollow markers are published values ({'; '.join(said)}), whose protocol these runs need not share; "
    text += "points that a source hides under another curve or cuts off below its axis are left out."
    if (curves["weights"] != "random").any():
        text += " Some published curves of pre-trained networks coincide exactly: low confidence."
    return text


def setting_of(record: RunRecord) -> tuple[str, str, str, str] | None:
    """The published setting that a run has: its data, network, weights (``random`` or a pre-training) and task."""
    data, model, weights = _data(record), _model(record), _weights(record)
    if data is None or model is None or weights is None or record.task == "transfer":
        return None
    # CLIP's own ResNet-50 is another network than that of the other starts.
    if ("_clip" in str(record.config["model"])) != (weights == "clip"):
        return None
    return data, model, weights, record.task


def _data(record: RunRecord) -> str | None:
    prefix, _, rest = str(record.config["data"]).lower().partition(":")
    last = rest.rstrip("/").rpartition("/")[2].removesuffix(".npz")
    names = [_SPELLINGS.get(name, name) for name in (prefix, last)]
    name = next((name for name in names if name in _CLASSES), None)
    classes = record.result.get("classes")
    return name if not isinstance(classes, list) or len(classes) == _CLASSES.get(str(name)) else None


def _model(record: RunRecord) -> str | None:
    name = str(record.config["model"])
    model, usual = _MODELS.get(name.partition(".")[0] if name.startswith("timm:") else name, (None, {}))
    prefix = "model_options."
    given = {key.removeprefix(prefix): value for key, value in record.config.items() if key.startswith(prefix)}
    same = all(key in usual and usual[key] == value for key, value in given.items())
    return model if same and set(given) >= _NEEDED & set(usual) else None


def _weights(record: RunRecord) -> str | None:
    """The kind of pre-training: from the prefix of a file, or from the tag of a library's weights."""
    model, text = str(record.config["model"]).lower(), record.weights.lower()
    if not text:
        return "random"
    kind, colon, _ = text.partition(":")
    if colon:
        return kind if kind in _KINDS else None
    if text == "imagenet":  # the library's own choice, unless the name of the network has a tag
        tag = model.partition(".")[2] if model.startswith("timm:") else ""
        text = tag or ("openai" if "_clip" in model else "in1k")
    if "/" in text or text.endswith((".pt", ".pth", ".safetensors")):
        return None
    if text == "openai":
        return "clip"
    # What was fine-tuned on ImageNet has seen other images before.
    only = text.endswith(_IMAGENET) and not text.endswith("_ft_in1k")
    return "imagenet" if only else None

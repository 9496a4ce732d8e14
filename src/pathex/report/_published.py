"""Curves that papers published, and which experiments they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import pandas as pd

from pathex.report._records import RunRecord

__all__ = ["ALIASES", "Published", "Setting", "published_for", "published_table", "setting_of"]

_FILE = "published.csv"

_DATA: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "cifar10": ("cifar10", 10),
        "cifar-10": ("cifar10", 10),
        "cifar100": ("cifar100", 100),
        "cifar-100": ("cifar100", 100),
        "tiny-imagenet": ("tiny-imagenet", 200),
        "tiny-imagenet-200": ("tiny-imagenet", 200),
        "imagenet": ("imagenet", 1000),
        "imagenet-1k": ("imagenet", 1000),
        "imagenet1k": ("imagenet", 1000),
        "voc2012": ("voc2012", 21),
    }
)
"""Data sets by name or by the last part of their path, and how many classes they must have to be the published one."""

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


@dataclass(frozen=True)
class Setting:
    """What a published curve was measured on.

    Attributes:
        data: Name of the data set.
        model: Name of the network.
        weights: ``random``, or what the network was pre-trained with: ``imagenet``, ``mocov2``, ``clip``, ``dino``.
        task: ``classification`` or ``segmentation``.
    """

    data: str
    model: str
    weights: str
    task: str


@dataclass(frozen=True)
class Published:
    """Published curves for one experiment; without rows there are none.

    Attributes:
        rows: Rows of the table of published values: one method of one source at one sparsity.
    """

    rows: pd.DataFrame | None = None

    @property
    def values(self) -> pd.DataFrame:
        """The rows, none of them if there are no curves."""
        return published_table().iloc[:0] if self.rows is None else self.rows

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of the table."""
        return self.values["source"].unique().tolist()

    def between(self, lowest: float, highest: float) -> "Published":
        """The curves as far as they lie in the range of some runs."""
        density = 1 - self.values["sparsity"]
        return self._where((density >= (1 - highest) / _NEAR) & (density <= (1 - lowest) * _NEAR))

    def at(self, sparsity: float) -> "Published":
        """The values at the sparsity of some runs."""
        return self._where((self.values["sparsity"] - sparsity).abs() < _SAME)

    def _where(self, inside: "pd.Series[bool]") -> "Published":
        return Published(self.values[inside | (self.values["method"] == "dense")])

    def caption(self) -> str:
        """Where the values come from and how far to trust them."""
        if self.values.empty:
            return ""
        said = []
        for source, reading in self.values.groupby("source", sort=False)["reading"].first().items():
            place, error = _SOURCES[str(source)]
            how = "its table" if reading == "printed" else f"read off its figure to {error} points"
            said.append(f"{source}, {place}, {how}")
        text = f"Hollow markers are published values ({'; '.join(said)}), whose protocol these runs need not share; "
        text += "points that a source hides under another curve or cuts off below its axis are left out."
        if (self.values["weights"] != "random").any():
            text += " Some published curves of pre-trained networks coincide exactly: low confidence."
        return text


@cache
def published_table() -> pd.DataFrame:
    """All published values."""
    with (files("pathex.report") / _FILE).open(encoding="utf-8") as stream:
        table: pd.DataFrame = pd.read_csv(stream)
    return table


def published_for(records: Sequence[RunRecord]) -> Published:
    """The published curves of one experiment."""
    settings = {setting_of(record) for record in records}
    [setting] = settings if len(settings) == 1 else [None]
    if setting is None:
        return Published()
    methods = {ALIASES.get(record.method, record.method) for record in records} | {"dense"}
    table = published_table()
    same = table["method"].isin(methods)
    for column, value in vars(setting).items():
        same &= table[column] == value
    return Published(table[same])


def setting_of(record: RunRecord) -> Setting | None:
    """The published setting that a run has, by its data, network, weights and task."""
    data, model, weights = _data(record), _model(record), _weights(record)
    if data is None or model is None or weights is None or record.task == "transfer":
        return None
    # CLIP's own ResNet-50 is another network than that of the other starts.
    if ("_clip" in str(record.config["model"])) != (weights == "clip"):
        return None
    return Setting(data, model, weights, record.task)


def _data(record: RunRecord) -> str | None:
    prefix, _, rest = str(record.config["data"]).partition(":")
    last = rest.rstrip("/").rpartition("/")[2].removesuffix(".npz")
    name, count = _DATA.get(prefix.lower()) or _DATA.get(last.lower()) or (None, 0)
    classes = record.result.get("classes")
    return name if not isinstance(classes, list) or len(classes) == count else None


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

"""From the folder of a run to its network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pathex import models
from pathex.errors import InvalidInput
from pathex.experiments.runs.folder import finished_result, read_config
from pathex.masks import Mask, make_permanent
from pathex.train import load_checkpoint


@dataclass(frozen=True)
class Preprocessing:
    """What images a network was trained on: pixels in [0, 1], resized, normalised by channel.

    Attributes:
        size: Side in pixels; None in folders of version 0.1, which do not tell.
        mean: Mean by channel.
        std: Standard deviation by channel.
        classes: Names of the classes, in the order of the outputs.
    """

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


def load_run(folder: str | Path, model: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The trained network of a finished run, with its mask's zeros.

    Nothing that the folder names is imported: names that pathex knows are made, and a network of the user's own code
    is given.

    Args:
        folder: Folder of a run of classification or segmentation.
        model: What makes the network, called like ``package.module:factory`` of a run: with ``num_classes``,
            ``in_channels`` and the run's ``model_options``, as far as it takes them. None: made by its name.

    Returns:
        The network, on the CPU, in eval mode; its ``preprocessing`` is a `Preprocessing`.

    Raises:
        InvalidInput: If the run is not finished, its network is not known by name and not given, or the weights do not
            fit it.

    Example:
        >>> network = load_run("runs/px-resnet20-fashion-mini-s0.9-1b2c3d4e")  # doctest: +SKIP
        >>> network.preprocessing.size  # doctest: +SKIP
        28
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidInput(f"no such folder: {folder}")
    config, result = read_config(folder), finished_result(folder)
    if result is None:
        raise InvalidInput(f"the run in {folder} is not finished; the same command of pathex run goes on with it")
    if "tasks" in result:
        raise InvalidInput(f"{folder} holds a run of task 'transfer', which has a network for each of its targets")
    options = dict(config.model_options)
    if "width" in result:  # of a small dense network
        options["width"] = result["width"]
    classes, normalisation = tuple(result["classes"]), result["normalisation"]
    network = build_network(config.model, len(classes), len(normalisation["mean"]), options, model)
    state = load_checkpoint(folder / "last.ckpt")["model"]
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInput(f"the weights of {folder} do not fit: {' '.join(str(error).split())}") from error
    masks = [folder / name for name in ("final_mask.safetensors", "mask.safetensors") if (folder / name).exists()]
    if masks:
        make_permanent(network, Mask.load(masks[0], network))
    size = result.get("image_size", result.get("crop"))
    mean, std = tuple(normalisation["mean"]), tuple(normalisation["std"])
    network.preprocessing = Preprocessing(size, mean, std, classes)  # type: ignore[assignment]
    return network.eval()


def build_network(
    name: str, classes: int, channels: int, options: dict[str, Any], model: Callable[..., nn.Module] | None
) -> nn.Module:
    """The network that a folder or file names, or that the user's own factory makes; nothing is imported."""
    if model is not None:
        return models.from_factory(name, model, classes, channels, options)
    if models.is_foreign(name):
        raise InvalidInput(f"the network is {name!r}, which nothing imports for a file: give its factory (model=)")
    return models.create(name, classes, channels, **options)

"""``pathex ntk``: the Neural Tangent Kernel of tickets beside that of their dense network."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pathex.cli.parser import Command, writable
from pathex.errors import InvalidInput
from pathex.experiments.runs import PositiveInt, TicketConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pathex import Mask

Case = tuple[str, "nn.Module", tuple["Tensor", "Tensor"], "Mask | None"]


@dataclass(frozen=True)
class NtkOptions:
    """Options of ``pathex ntk``.

    Attributes:
        runs: Folders of runs, whose tickets they are, at the weights that they start from.
        model: Name of a model (see ``pathex models``) in place of runs.
        model_options: Options of the model's factory, such as ``width``.
        data: Name of a data set (see ``pathex datasets``).
        data_options: Options of the data set, such as ``image_size``.
        weights: Weights of the model: a file, ``imagenet`` or another tag of the model's own library; null draws them.
        mask: Mask files in any form that ``pathex convert`` reads.
        images_per_class: Images of each class that the kernel is of, drawn as a pruning set.
        batch_norm: What BatchNorm uses: ``stored`` statistics, those of the masked network on the images
            (``calibrated``), or those of the ``batch`` as in training.
        form: ``full`` kernel, or ``trace``: summed over the outputs.
        memory: Memory beside the model, in bytes or as text such as ``2GiB``; null is 2 GiB, or half of a GPU's.
        seed: Seed of initialization and images.
        out: CSV file of the table.
    """

    runs: tuple[str, ...] = ()
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    data: str = "fashion-mini"
    data_options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    mask: tuple[str, ...] = ()
    images_per_class: PositiveInt = 10
    batch_norm: Literal["stored", "calibrated", "batch"] = "calibrated"
    form: Literal["full", "trace"] = "full"
    memory: str | int | None = None
    seed: int = 0
    out: str = "ntk.csv"


def _cases(options: NtkOptions) -> Iterator[Case]:
    """Names, networks, images with labels, and masks; a dense network before its tickets."""
    from pathex.experiments.runs import TRAINED, build_task, pruning_seed, read_config, task_at_start
    from pathex.masks import Mask, read_mask

    if bool(options.runs) == (options.model is not None):
        raise InvalidInput("give folders of runs or --model, as in pathex ntk --model resnet20 --mask m.safetensors")
    names = ("model", "model_options", "data", "data_options", "weights", "seed")
    given = {"": TicketConfig(**{name: getattr(options, name) for name in names})} if options.model else {}
    tickets: dict[str, Any] = given | {folder: read_config(Path(folder)) for folder in options.runs}
    alike: dict[str, list[str]] = {}
    for folder, config in tickets.items():
        if config.method == "small-dense":
            raise InvalidInput(f"{folder} holds a smaller network, not a ticket; allowed: runs with a mask, or dense")
        about = [getattr(config, name) for name in (*names, "task", "task_options", "pruning_seed")]
        # Trained methods and ablations begin at weights of their own.
        about += [folder if config.method in TRAINED else "", getattr(config, "sanity", "none")]
        alike.setdefault(repr(about), []).append(folder)
    for folders in alike.values():
        config = tickets[folders[0]]
        task = task_at_start(config, Path(folders[0])) if folders[0] else build_task(config)
        found = task.pruning_set(options.images_per_class, pruning_seed(config))
        start = (task.model, (found.images, found.labels))
        yield f"{config.model} on {config.data}, seed {config.seed}", *start, None
        for folder in folders:
            if folder and tickets[folder].method != "dense":
                yield folder, *start, Mask.load(Path(folder) / "mask.safetensors", task.model)
        for file in options.mask:
            yield file, *start, read_mask(Path(file), task.model)


def _ntk(options: NtkOptions) -> None:
    out = writable(options.out)
    import pandas as pd

    from pathex import ntk
    from pathex.cli.console import console, show, table

    cases = list(_cases(options))
    how: dict[str, Any] = {name: getattr(options, name) for name in ("form", "batch_norm", "memory")}
    told = [ntk.predict(network, data, mask, **how) for _, network, data, mask in cases]
    seconds, most = sum(cost.seconds for cost in told), max(cost.bytes for cost in told)
    console().print(f"{len(cases)} kernels: about {seconds:.0f} s, {most / 2**20:.0f} MiB at most")
    rows: list[dict[str, Any]] = []
    dense: Any = None
    for name, network, data, mask in cases:
        kernel = ntk.kernel(network, data, mask, **how)
        dense = kernel if mask is None else dense  # which comes before its tickets
        spectrum = ntk.spectrum(kernel)
        row = {"density": 1.0 if mask is None else mask.density, "trace": kernel.trace}
        row |= {"of dense": kernel.trace / dense.trace, "effective rank": float(spectrum.effective_rank)}
        row |= {"condition": spectrum.condition, "log det": float(spectrum.log_determinant())}
        row |= {"alignment": ntk.alignment(kernel, data[1]), "distance": ntk.distance(kernel, dense)}
        rows.append({"": name, **row})
    shown = table(*rows[0], right=len(rows[0]) - 1)
    for row in rows:
        shown.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    show(shown)
    pd.DataFrame(rows).rename(columns={"": "name"}).to_csv(out, index=False, float_format="%.6g")
    print(out)


NTK = Command(
    "the Neural Tangent Kernel of tickets",
    NtkOptions,
    _ntk,
    "Compares the exact kernel of tickets with that of their dense network: trace, effective rank, condition, log "
    "determinant, alignment with the labels, and distance. Says first what it will take.",
    positional=("runs", "*", "Folders of runs."),
    example="pathex ntk --model resnet20 --data cifar10 --mask px.safetensors,snip.safetensors",
)

"""Transfer: a network is pruned on one task and then learns the others, with heads from ridge regression."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pathex.data import ImageData, PruningSet
from pathex.errors import InvalidInput, refusing
from pathex.files import SEAL, read, read_safetensors, write_json, write_safetensors
from pathex.graph import copied
from pathex.tasks.classification import Classification
from pathex.tasks.linear_head import Head, fit_head, head_layer, install_head, linear
from pathex.tasks.task import Setup, Task, about, failure, training_rows
from pathex.tasks.transfer_options import TransferOptions, images_of, transfer_options
from pathex.train import Batches, Events, Prepare, TrainOptions, load_checkpoint, memory_format

# Features are computed in batches of this size whatever the training's, so that a head does not depend on it.
_BATCH = 64


class Transferred(nn.Module):
    """What the training leaves: the pruned network, the head of each target, and the folder of what was fine-tuned."""

    def __init__(self, pruned: nn.Module, heads: Mapping[int, Head], folder: Path) -> None:
        super().__init__()
        self.pruned, self.heads, self.folder = pruned, dict(heads), folder

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (B, K) for the task that the network was pruned on."""
        outputs: Tensor = self.pruned(inputs)
        return outputs


@dataclass(frozen=True)
class OneTask(Classification):
    """One of the tasks, with a network that has a head for it, which is not to be pruned."""

    layer: str

    @property
    def unprunable(self) -> tuple[str, ...]:
        """The head, which is fitted anew for every mask."""
        return (self.layer,)

    def loss(self, name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Squared error (``auto``, ``mse``), which ridge regression minimises, or ``cross-entropy``."""
        return super().loss("mse" if name == "auto" else name, label_smoothing)


@dataclass(frozen=True)
class Transfer(Task):
    """A network and several tasks: it is pruned on one and learns the others, each from the same pruned weights."""

    data: ImageData
    options: TransferOptions
    layer: str
    validation: float
    seed: int

    @property
    def unprunable(self) -> tuple[str, ...]:
        """The head, which every task replaces by its own."""
        return (self.layer,)

    def source_task(self) -> OneTask:
        """This network on the source's images, with a head that is fitted here on those for training."""
        source = self._part(self.options.source, self.model)
        self._install(self.model, self._fitted(source))
        return source

    def pruning_set(self, images_per_class: int, seed: int) -> PruningSet:
        """Training images of the source; the network gets its head, on which their gradients depend."""
        chosen = self.source_task().pruning_set(images_per_class, seed)
        numbers, _ = images_of(self.data.train.labels, self.options.tasks[self.options.source])
        return replace(chosen, indices=numbers[chosen.indices].tolist())

    def feed(
        self, part: str, device: torch.device, batch_size: int, *, share: tuple[int, int] = (0, 1), **options: Any
    ) -> Batches | None:
        """Batches of one part of the source; see `Task.feed`."""
        source = self._part(self.options.source, self.model, test=part == "test")
        return source.feed(part, device, batch_size, share=share, **options)

    def loss(self, name: str, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of every task; see `OneTask.loss`."""
        return self._part(self.options.source, self.model).loss(name, label_smoothing)

    def metric(self, device: torch.device) -> Any:
        """Accuracy over all images of the source."""
        return self._part(self.options.source, self.model).metric(device)

    def facts(self) -> dict[str, Any]:
        """Normalisation and classes of the data, and what the network was pruned on."""
        return {
            **about(self.data),
            "source": self.options.source,
            "source_classes": self._names(self.options.source),
            "alpha": self.options.alpha,
            "head": self.options.head,
        }

    def train(
        self,
        options: TrainOptions,
        *,
        fabric: Any,
        folder: Path,
        prepare: Prepare | None = None,
        on_event: Events | None = None,
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Fit the head of each target on the features of the pruned network, and fine-tune from there."""
        if options.head_lr is not None and self.options.head == "fixed":
            raise InvalidInput(f"head_lr is {options.head_lr}, and the head is fixed; allowed: none, or head 'trained'")
        # Epochs that rewinding skips were spent on the source; a target begins at its own first.
        options = replace(options, start=0)
        pruned = self._pruned(options, prepare).to(fabric.device)
        heads: dict[int, Head] = {}
        rows: list[dict[str, Any]] = []
        for count, number in enumerate(self.options.targets, 1):
            place = _place(folder, number)
            if fabric.is_global_zero:
                place.mkdir(parents=True, exist_ok=True)
            fabric.barrier()
            heads[number] = self._kept_head(pruned, number, place, fabric)
            which = {"task": number, "target": count, "targets": len(self.options.targets)}
            tell = None if on_event is None else partial(_tell, on_event, which)
            rows += self._fine_tune(number, heads[number], options, fabric, place, prepare, tell)
        return Transferred(pruned, heads, folder), rows

    def test(self, model: nn.Module, *, fabric: Any, batch_size: int) -> dict[str, Any]:
        """Measure every target on its test images, before and after fine-tuning."""
        assert isinstance(model, Transferred)
        rows, images = [], 0
        for number in self.options.targets:
            after = self._with_head(self.model, model.heads[number])
            after.load_state_dict(load_checkpoint(_place(model.folder, number) / "last.ckpt")["model"])
            values = []
            for network in (self._with_head(model.pruned, model.heads[number]), after):
                part = self._part(number, network, test=True)
                # As in training: the layout of the weights decides how convolutions round.
                prepared = fabric.setup_module(network.to(memory_format=memory_format(network)))
                values.append(part.test(prepared, fabric=fabric, batch_size=batch_size))
            images += values[0]["test_images"]
            zero_shot, fine_tuned = (value["test_accuracy"] for value in values)
            rows.append(
                {"task": number, "classes": self._names(number), "zero_shot": zero_shot, "fine_tuned": fine_tuned}
            )
        tuned, zero = (round(fmean(row[part] for row in rows), 7) for part in ("fine_tuned", "zero_shot"))
        return {"test_accuracy": tuned, "zero_shot_accuracy": zero, "tasks": rows, "test_images": images}

    def _names(self, number: int) -> list[str]:
        return [self.data.classes[label] for label in self.options.tasks[number]]

    def _part(self, number: int, network: nn.Module, *, test: bool = False) -> OneTask:
        """One task; its test images are left out unless asked for."""
        classes = self.options.tasks[number]
        train, tested = _restricted(self.data.train, classes), _restricted(self.data.test, classes if test else ())
        names = tuple(self._names(number))
        data = replace(self.data, train=train, test=tested, num_classes=len(classes), classes=names)
        trained, held_out = training_rows(train.labels, self.validation, self.seed)
        return OneTask(network, self.create, self.example, data, trained, held_out, self.layer)

    def _fitted(self, part: OneTask, fabric: Any = None) -> Head:
        """The head of a task from its training images, validation images not among them."""
        share = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
        feed = part.feed("train", linear(part.model, self.layer).weight.device, _BATCH, share=share)
        assert feed is not None
        return fit_head(part.model, self.layer, feed, part.data.num_classes, self.options.alpha, fabric=fabric)

    def _install(self, network: nn.Module, head: Head) -> None:
        install_head(network, self.layer, head, trained=self.options.head == "trained")

    def _with_head(self, network: nn.Module, head: Head) -> nn.Module:
        pruned = copied(network)
        self._install(pruned, head)
        return pruned

    def _pruned(self, options: TrainOptions, prepare: Prepare | None) -> nn.Module:
        """A copy of the network with the mask's zeros, and without what holds them there."""
        pruned = copied(self.model)
        if prepare is not None:
            held = copied(self.model)
            trained = [parameter for parameter in held.parameters() if parameter.requires_grad]
            prepare(held, torch.optim.SGD(trained, lr=options.lr))
            pruned.load_state_dict(held.state_dict())
        return pruned

    def _kept_head(self, pruned: nn.Module, number: int, place: Path, fabric: Any) -> Head:
        """The head of a target, from its folder if it is there."""
        path = place / "head.safetensors"
        if not fabric.broadcast(path.exists()):
            weight, bias = self._fitted(self._part(number, pruned), fabric)
            if fabric.is_global_zero:
                tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
                write_safetensors(path, tensors, {"file": SEAL})
            fabric.barrier()
        found = {name: value.to(fabric.device) for name, value in read_safetensors(path)[0].items()}
        return found["weight"], found.get("bias")

    def _fine_tune(
        self,
        number: int,
        head: Head,
        options: TrainOptions,
        fabric: Any,
        place: Path,
        prepare: Prepare | None,
        on_event: Events | None,
    ) -> list[dict[str, Any]]:
        done = place / "task.json"
        if fabric.broadcast(done.exists()):
            if on_event is not None:
                on_event("resumed", {"stage": "training", "epoch": options.epochs, "epochs": options.epochs})
            known: list[dict[str, Any]] = read(done, str(done), "; delete it to train again")["rows"]
            return known
        part = self._part(number, self._with_head(self.model, head))
        _, trained = part.train(options, fabric=fabric, folder=place, prepare=prepare, on_event=on_event)
        rows = [{"task": number, **row} for row in trained]
        if fabric.is_global_zero:
            write_json(done, {"task": number, "classes": self._names(number), "rows": rows})
        fabric.barrier()
        return rows


def build(setup: Setup) -> Transfer:
    """Load the data, split their classes into tasks, and build the network; see `pathex.tasks.build`."""
    images = setup.images()
    if not isinstance(images, ImageData):
        raise InvalidInput(f"data {setup.data!r} has no class for each image, which task 'transfer' needs")
    options = transfer_options(setup.task_options, images)
    classes = len(options.tasks[options.source])
    network, create = setup.networks(images, classes)
    rows, _ = images_of(images.train.labels, options.tasks[options.source])
    example = images.normalise(images.train.images(rows[:1]))
    with refusing(failure(setup, example)):
        layer = head_layer(network, example)
    if layer is None or linear(network, layer).out_features != classes:
        raise InvalidInput(
            f"model {setup.model!r}: task 'transfer' replaces the last layer by a ridge regression, and needs outputs "
            f"(B, {classes}) that are those of one nn.Linear on features (B, D)"
        )
    for parameter in linear(network, layer).parameters():
        parameter.requires_grad_(options.head == "trained")
    return Transfer(network, create, example, images, options, layer, setup.validation, setup.seed)


def _restricted(split: Any, classes: Sequence[int]) -> Any:
    return split.subset(*images_of(split.labels, classes))


def _place(folder: Path, number: int) -> Path:
    return folder / "tasks" / f"{number:02d}"


def _tell(on_event: Events, which: Mapping[str, int], kind: str, payload: dict[str, Any]) -> None:
    on_event(kind, {**which, **payload})

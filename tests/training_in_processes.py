"""Random images and small trainings; one of them several processes carry out together, and each tells its end."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

import pathex
from pathex.distributed import is_sharded
from pathex.train import Feed, Mixed, TrainOptions, evaluate, fabric, fit

CPU = torch.device("cpu")


class LazySplit:
    """A split that holds its images out of sight, as one that decodes files does."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self._pixels = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(count) % 4

    def __len__(self):
        return len(self.labels)

    def images(self, indices):
        return self._pixels[indices]


class Split(LazySplit):
    @property
    def data(self):
        return self._pixels


@dataclass
class Images:
    train: LazySplit
    test: LazySplit
    dtype: torch.dtype = torch.float32

    image_size, in_channels = 8, 3

    def on(self, device):
        return self

    def resized(self, pixels):
        return pixels

    def normalise(self, pixels):
        return pixels.to(self.dtype) / 128 - 1


def accuracy():
    return MulticlassAccuracy(4, average="micro")


def trained(network, images, folder, *, machine=None, groups=None, loss=None, more=None, **options):
    """Train a copy of a network in this process; ``more`` goes to ``fit``, other keywords are options."""
    folder.mkdir(exist_ok=True)
    options = TrainOptions(**{"epochs": 4, "lr": 0.05, "augment": "crop-flip", "milestones": (0.5,), **options})
    feed = Feed(images, images.train, device=CPU, batch_size=8, augment=options.augment)
    if options.mixup or options.cutmix:
        feed = Mixed(feed, 4, mixup=options.mixup, cutmix=options.cutmix)
    network, groups = copy.deepcopy((network, groups))
    given = {"fabric": machine or fabric("cpu"), "loss": loss or nn.CrossEntropyLoss(), "metric": accuracy()}
    return fit(network, feed, options, folder=folder, groups=groups, **given, **(more or {}))


def network(norm):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        middle = nn.BatchNorm2d(6) if norm else nn.Identity()
        layers = (nn.Conv2d(3, 6, 3, stride=2), middle, nn.ReLU(), nn.Flatten(), nn.Linear(54, 7), nn.Linear(7, 4))
        return nn.Sequential(*layers).double()


def work(jobs):
    """Train in this process as one of some ``devices``, once for each job."""
    for job in jobs:
        carry_out(*job)


def carry_out(folder, devices, strategy, epochs, norm, accumulate, recipe):
    """One training, from ``last.ckpt`` in the folder if it is there."""
    machine = fabric("cpu", "64-true", devices=devices, strategy=strategy)
    images, model = Images(Split(34, 0), Split(9, 1), torch.float64), network(norm)
    share = (machine.global_rank, machine.world_size)
    feed = Feed(images, images.train, device=machine.device, batch_size=7, part=share)
    test = Feed(images, images.test, device=machine.device, batch_size=7, part=share)
    mask = pathex.prune(model, "magnitude", sparsity=0.5, data=torch.zeros(1, 3, 8, 8), group=None).mask
    sharded = []

    def hold(module, optimizer):
        sharded.extend(is_sharded(parameter) for parameter in module.parameters())
        return pathex.attach(module, mask, optimizer)

    options = TrainOptions(epochs=epochs, lr=0.05, milestones=(), accumulate=accumulate, **recipe)
    given = {"fabric": machine, "loss": nn.CrossEntropyLoss(), "metric": accuracy(), "folder": Path(folder)}
    final, rows = fit(model, feed, options, validation=test, prepare=hold, **given)
    measured = evaluate(final, test, accuracy())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rank = os.environ.get("LOCAL_RANK", "0")
    known = {"rows": rows, "accuracy": measured, "buffers": buffers, "sharded": sharded, "mask": dict(mask)}
    torch.save(known, Path(folder) / f"rank-{rank}.pt")


def work_and_fail(jobs):
    """Train, and fail in the second process at last."""
    work(jobs)
    machine = fabric("cpu", devices=2)
    if machine.global_rank == 1:
        raise pathex.errors.InvalidInput("image 7 cannot be read")
    machine.barrier()
    machine.barrier()

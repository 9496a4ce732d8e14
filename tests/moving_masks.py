"""A small network that trains with a mask, fixed or moving, alone and in two processes."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import pathex
import several_processes
from pathex.pruning import dynamic

SGD_OPTIONS = {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.01}


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(96, 4))


def exact():
    """The network in float64, where batch statistics are not those of the parts."""
    model = network().double()
    model[1].eval()
    return model


def sgd(model):
    return SGD(model.parameters(), **SGD_OPTIONS)


def random_mask(model):
    source = torch.Generator().manual_seed(1)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    return pathex.Mask({name: torch.rand(p.shape, generator=source) < 0.4 for name, p in weights.items()})


def batch(step):
    source = torch.Generator().manual_seed(100 + step)
    return torch.randn(12, 2, 4, 4, generator=source), torch.randint(4, (12,), generator=source)


def train(model, optimizer, steps, parts=1, choose=slice(None)):
    for step in steps:
        optimizer.zero_grad()
        x, y = batch(step)
        x, y = x[choose].to(next(model.parameters()).dtype), y[choose]
        for part, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (F.cross_entropy(model(part), wanted) / parts).backward()
        optimizer.step()


def train_scaled(model, optimizer, steps):
    """In mixed precision, with a scaler that skips the fourth step."""
    scaler = torch.amp.GradScaler("cpu")
    for step in range(steps):
        optimizer.zero_grad()
        x, y = batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if step == 3:
            model[0].weight.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()


def begin(model, method, mask=None, optimizer=None, **options):
    """The optimizer and the handle; the mask is random if none is given."""
    optimizer = optimizer or sgd(model)
    options = {"steps": 24, "every": 4, "until": 0.8, "seed": 3} | options
    return optimizer, dynamic.attach(model, mask or random_mask(model), optimizer, method=method, **options)


def outside_is_zero(model, mask):
    return all(model.get_parameter(name)[~entry].eq(0).all() for name, entry in mask.items())


def of_two(rank):
    """The masks after 13 steps on every other image, and what becomes of sharded weights."""
    found = {}
    for method in dynamic.METHODS:
        model = exact()
        wrapped = DistributedDataParallel(model)
        optimizer, handle = begin(model, method)
        train(wrapped, optimizer, range(13), choose=slice(rank, None, 2))
        found[method] = handle.mask
    model, mask = network(), random_mask(network())
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return found | {"sharded": several_processes.raised(lambda: begin(model, "rigl", mask))}

import copy
import gc
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pathex
from brute_force.cases import random_mask
from model_factories import small as network
from pathex.errors import InvalidInput, MaskMismatch


def half_mask(model):
    return pathex.Mask(random_mask(model, 1, 0.5))


model = pytest.fixture(lambda: network(0), name="model")
mask = pytest.fixture(half_mask, name="mask")


def sgd(model):
    return SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def holds(model, mask):
    """Removed weights are zero and kept ones are not."""
    return all(torch.equal(model.get_parameter(name) != 0, entry) for name, entry in mask.items())


def train(model, optimizer, steps):
    source = torch.Generator().manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        x, y = torch.randn(8, 1, 4, 4, generator=source), torch.randint(3, (8,), generator=source)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "before"), [(sgd, 0), (sgd, 5), (lambda m: AdamW(m.parameters(), lr=0.01, weight_decay=0.1), 0)]
)
def test_weights_stay_zero_through_training_whatever_the_momentum_from_before(model, mask, make, before):
    optimizer = make(model)
    train(model, optimizer, before)
    weights = copy.deepcopy(model.state_dict())
    assert not before or optimizer.state[model[0].weight]["momentum_buffer"].ne(0).all()
    pathex.attach(model, mask, optimizer)
    assert holds(model, mask)
    train(model, optimizer, 20)
    assert holds(model, mask)
    assert not torch.equal(model.state_dict()["4.weight"], weights["4.weight"] * mask["4.weight"])


def test_mixed_precision(model, mask):
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for step in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(8, 1, 4, 4)).square().mean()
        scaler.scale(loss).backward()
        if step == 3:
            model[0].weight.grad.fill_(float("inf"))  # a skipped step
        scaler.step(optimizer)
        scaler.update()
    assert holds(model, mask)


def test_a_copy_keeps_zeros_loads_weights_and_holds_under_an_optimizer_of_its_own(model, mask):
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    train(model, optimizer, 3)
    trained = copy.deepcopy(model.state_dict())
    alone, attached, other = (copy.deepcopy(model) for _ in range(3))
    attached_optimizer = sgd(attached)
    pathex.attach(attached, mask, attached_optimizer)
    for twin, own in (copy.deepcopy((model, optimizer)), (alone, sgd(alone)), (attached, attached_optimizer)):
        assert holds(twin, mask)
        train(twin, own, 5)
        assert holds(twin, mask)
    assert all(torch.equal(model.state_dict()[name], entry) for name, entry in trained.items())
    other.load_state_dict(network().state_dict())
    assert holds(other, mask)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_models(model, mask, when):
    optimizer = sgd(model)
    if when == "before":
        pathex.attach(model, mask, optimizer)
    compiled = torch.compile(model, backend="eager")
    if when == "after":
        pathex.attach(compiled, mask, optimizer)  # type: ignore[arg-type]
    train(compiled, optimizer, 3)  # type: ignore[arg-type]
    assert holds(model, mask)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
def test_loading_dense_weights_does_not_fill_them(model, mask, assign, pickled):
    dense, other, file = network().state_dict(), network(), io.BytesIO()
    pathex.attach(model, mask)
    if pickled:
        torch.save(model, file)
        file.seek(0)
        model = torch.load(file, weights_only=False)
        assert holds(model, mask)
    model.load_state_dict(dense, assign=assign)
    assert holds(model, mask)
    assert torch.equal(model[4].weight, dense["4.weight"] * mask["4.weight"])
    other.load_state_dict(model.state_dict())
    assert holds(other, mask)


def test_averages_keep_them_zero(model, mask):
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        train(model, optimizer, 1)
        average.update_parameters(model)
    assert holds(average.module, mask)


def test_remove_lets_them_go_and_make_permanent_needs_no_hooks(model, mask):
    optimizer = sgd(model)
    handle = pathex.attach(model, mask, optimizer)
    assert handle.mask is mask
    handle.remove()
    handle.remove()
    assert holds(model, mask)
    train(model, optimizer, 1)
    assert not holds(model, mask)
    model.load_state_dict(network().state_dict())
    assert model[0].weight.ne(0).all()
    kept = model[4].weight.detach() * mask["4.weight"]
    assert pathex.make_permanent(model, mask) is model
    assert holds(model, mask) and torch.equal(model[4].weight, kept)
    train(model, optimizer, 1)
    assert not holds(model, mask)


OTHER = pathex.Mask({"fc.weight": torch.ones(3, 4, dtype=torch.bool)})
BAD = {
    "'fc.weight' is not there": (MaskMismatch, lambda m, mask: (OTHER,)),
    "'4.weight' has shape": (
        MaskMismatch,
        lambda m, mask: (pathex.Mask({**mask, "4.weight": OTHER["fc.weight"]}), sgd(m)),
    ),
    "made for another model": (InvalidInput, lambda m, mask: (mask, sgd(network()))),
    "not dict": (InvalidInput, lambda m, mask: (dict(mask),)),
    "Optimizer, not str": (InvalidInput, lambda m, mask: (mask, "sgd")),
}


@pytest.mark.parametrize("message", BAD)
def test_a_refused_attach_changes_nothing(model, mask, message):
    before = copy.deepcopy(model.state_dict())
    error, make = BAD[message]
    arguments = make(model, mask)
    with pytest.raises(error, match=message):
        pathex.attach(model, *arguments)
    assert all(torch.equal(model.state_dict()[name], entry) for name, entry in before.items())
    assert not model._load_state_dict_post_hooks
    if isinstance(arguments[-1], Optimizer):
        assert not arguments[-1]._optimizer_step_post_hooks


def test_zeroes_replace_what_is_no_number_and_leave_every_other_bit(model, mask):
    handle = pathex.attach(model, mask)
    bad = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    with torch.no_grad():
        for name in mask:
            weight = model.get_parameter(name)
            weight.copy_(bad.repeat(weight.numel() // 4 + 1)[: weight.numel()].view(weight.shape))
    before = {name: model.get_parameter(name).detach().clone().view(torch.int32) for name in mask}
    handle.apply()
    for name, entry in mask.items():
        after = model.get_parameter(name).detach().view(torch.int32)
        assert torch.equal(after[entry], before[name][entry]) and not after[~entry].any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_of_removed_weights_are_zero_in_every_layout_and_dtype(layout, dtype):
    layers = [nn.Conv2d(2, 3, 3), nn.Conv2d(3, 9, 3), nn.Conv2d(9, 4, 1), nn.Flatten(), nn.Linear(16, 16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(16, 16), nn.Linear(16, 3))
    model[6].weight = model[4].weight
    model.to(dtype).to(memory_format=layout)
    kept, optimizer = half_mask(model), sgd(model)
    pathex.attach(model, kept, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(2, 2, 6, 6, dtype=dtype)).square().sum().backward()
        for name, entry in kept.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None and not gradient[~entry].any() and gradient[entry].any()
        optimizer.step()
    assert all(not model.get_parameter(name)[~entry].any() for name, entry in kept.items())
    assert model[6].weight is model[4].weight


def test_an_attached_model_can_be_collected(mask):
    model = network()
    optimizer = sgd(model)
    handle = pathex.attach(model, mask, optimizer)
    train(model, optimizer, 1)
    known = weakref.ref(model), weakref.ref(model[0].weight)
    del model, optimizer, handle
    gc.collect()
    assert known[0]() is None and known[1]() is None

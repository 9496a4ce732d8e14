import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pathex
from moving_masks import network, random_mask, sgd, train, train_scaled
from pathex.errors import InvalidInput, MaskMismatch
from snapshots import unchanged

model = pytest.fixture(lambda: network(0), name="model")
mask = pytest.fixture(random_mask, name="mask")


def holds(model, mask):
    """Removed weights are zero and kept ones are not."""
    return all(torch.equal(model.get_parameter(name) != 0, entry) for name, entry in mask.items())


@pytest.mark.parametrize(
    ("make", "before"), [(sgd, 0), (sgd, 5), (lambda m: AdamW(m.parameters(), lr=0.01, weight_decay=0.1), 0)]
)
def test_weights_stay_zero_through_training_whatever_the_momentum_from_before(model, mask, make, before):
    optimizer = make(model)
    train(model, optimizer, range(before))
    weights = copy.deepcopy(model.state_dict())
    assert not before or optimizer.state[model[0].weight]["momentum_buffer"].ne(0).all()
    pathex.attach(model, mask, optimizer)
    assert holds(model, mask)
    train(model, optimizer, range(20))
    assert holds(model, mask)
    assert not torch.equal(model.state_dict()["4.weight"], weights["4.weight"] * mask["4.weight"])


def test_mixed_precision(model, mask):
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    train_scaled(model, optimizer, 10)
    assert holds(model, mask)


def test_averages_and_copies_keep_zeros_and_hold_under_optimizers_of_their_own(model, mask):
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(3):
        train(model, optimizer, [step])
        average.update_parameters(model)
    assert holds(average.module, mask)
    trained = copy.deepcopy(model.state_dict())
    alone, attached, other = (copy.deepcopy(model) for _ in range(3))
    attached_optimizer = sgd(attached)
    pathex.attach(attached, mask, attached_optimizer)
    for twin, own in (copy.deepcopy((model, optimizer)), (alone, sgd(alone)), (attached, attached_optimizer)):
        assert holds(twin, mask)
        train(twin, own, range(5))
        assert holds(twin, mask)
    assert all(torch.equal(model.state_dict()[name], entry) for name, entry in trained.items())
    other.load_state_dict(network().state_dict())
    assert holds(other, mask)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_models(model, mask, after):
    optimizer, compiled = sgd(model), torch.compile(model, backend="eager")
    pathex.attach(compiled if after else model, mask, optimizer)  # type: ignore[arg-type]
    train(compiled, optimizer, range(3))  # type: ignore[arg-type]
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


def test_remove_lets_them_go_and_make_permanent_needs_no_hooks(model, mask):
    optimizer = sgd(model)
    handle = pathex.attach(model, mask, optimizer)
    assert handle.mask is mask
    handle.remove()
    handle.remove()
    assert holds(model, mask)
    train(model, optimizer, [0])
    assert not holds(model, mask)
    model.load_state_dict(network().state_dict())
    assert model[0].weight.ne(0).all()
    kept = model[4].weight.detach() * mask["4.weight"]
    assert pathex.make_permanent(model, mask) is model
    assert holds(model, mask) and torch.equal(model[4].weight, kept)
    train(model, optimizer, [0])
    assert not holds(model, mask)


def other(name):
    return pathex.Mask({name: torch.ones(3, 4, dtype=torch.bool)})


BAD = {
    "'fc.weight' is not there": (MaskMismatch, lambda m, mask: (other("fc.weight"),)),
    "'4.weight' has shape": (MaskMismatch, lambda m, mask: (other("4.weight"), sgd(m))),
    "made for another model": (InvalidInput, lambda m, mask: (mask, sgd(network()))),
    "not dict": (InvalidInput, lambda m, mask: (dict(mask),)),
    "Optimizer, not str": (InvalidInput, lambda m, mask: (mask, "sgd")),
}


@pytest.mark.parametrize("message", BAD)
def test_a_refused_attach_changes_nothing(model, mask, message):
    error, make = BAD[message]
    arguments = make(model, mask)
    with unchanged(model), pytest.raises(error, match=message):
        pathex.attach(model, *arguments)
    assert not model._load_state_dict_post_hooks
    assert not getattr(arguments[-1], "_optimizer_step_post_hooks", None)


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
    kept, optimizer = random_mask(model), sgd(model)
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
    train(model, optimizer, [0])
    known = weakref.ref(model), weakref.ref(model[0].weight)
    del model, optimizer, handle
    gc.collect()
    assert known[0]() is None and known[1]() is None

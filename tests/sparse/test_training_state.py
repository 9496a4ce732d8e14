"""Optimizers, checkpoints, copies and threads of networks that train by their kept weights."""

import copy
import gc
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import pathex
import training_networks as nets
from dense_twin import (
    assert_near,
    assert_same_gradients,
    assert_same_state,
    assert_same_steps,
    images,
    loss_of,
    pair,
    random_mask,
    random_state,
    sgd,
    twin,
)
from pathex.sparse import Team, convert, dense_state, kept_layers, kept_state, plan, restore


def clipped(optimizer, model):
    """The step of an optimizer on gradients of norm 0.1 in all."""
    step = optimizer.step
    optimizer.step = lambda: (nn.utils.clip_grad_norm_(model.parameters(), 0.1), step())
    return optimizer


OPTIMIZERS = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.5),
    "Nesterov": lambda model: torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "clipping": lambda model: clipped(sgd(model), model),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    model = nets.vgg().double()
    x, mask = images().double(), random_mask(model)
    net, dense = pair(model, mask, x)
    # Adam divides by roots of squares that may be as small as rounding.
    assert_same_steps(net, dense, x, 10, OPTIMIZERS[name], tolerance=1e-8 if name != "RMSprop" else 1e-6)


def test_accumulation():
    model = nets.resnet().double()
    mask, x = random_mask(model), images(8).double()
    net, dense = pair(model, mask, x)
    assert_same_steps(net, dense, x, 3, loss=lambda each, x: sum(loss_of(each, part) for part in x.split((3, 5))) / 2)
    for each in (net, dense):
        each.zero_grad()
        for part in x.split(2):
            loss_of(each, part).backward()
    assert_same_gradients(net, dense, mask, 1e-9)


@pytest.mark.parametrize("name", ["AdamW", "Nesterov"])
def test_the_checkpoint_of_one_engine_resumes_in_the_other(name):
    model = nets.vgg().double()
    x, mask = images().double(), random_mask(model)
    net, dense = pair(model, mask, x)
    made = [OPTIMIZERS[name](each) for each in (net, dense)]
    assert_same_steps(net, dense, x, 3, lambda each: made[each is dense])
    state = made[0].state_dict()["state"]
    assert {entry.numel() for number, entry in enumerate(net.parameters()) if number in state} >= {
        mask["0.weight"].sum().item()
    }
    states = [dense_state(net, made[0]), made[1].state_dict()]
    for number, entry in states[1]["state"].items():
        for key, value in entry.items():
            if isinstance(value, torch.Tensor):
                assert_near(states[0]["state"][number][key], value, 1e-8, key, 1.0)
    swapped = [OPTIMIZERS[name](each) for each in (net, dense)]
    swapped[0].load_state_dict(kept_state(net, swapped[0], copy.deepcopy(states[1])))
    swapped[1].load_state_dict(copy.deepcopy(states[0]))
    weights = [copy.deepcopy(each.state_dict()) for each in (net, dense)]
    net.load_state_dict(weights[1])
    dense.load_state_dict(weights[0])
    assert_same_steps(net, dense, x, 3, lambda each: swapped[each is dense])


def test_what_is_saved_is_dense_and_what_does_not_fit_is_refused():
    model = random_state(nets.vgg())
    x, mask = images(), random_mask(model)
    net, dense = pair(model, mask, x)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert {name: entry.shape for name, entry in saved.items()} == {n: e.shape for n, e in model.state_dict().items()}
    assert_same_state(net, dense, 0.0)
    other = twin(random_state(nets.vgg()), mask)
    assert not net.load_state_dict(copy.deepcopy(other.state_dict())).missing_keys
    assert_same_state(net, other, 0.0)
    full = nets.vgg().state_dict()
    before = {name: entry.clone() for name, entry in full.items()}
    with pytest.raises(RuntimeError, match=r"(?s)3\.weight is not zero where its mask removes"):
        net.load_state_dict(full)
    assert all(torch.equal(entry, full[name]) for name, entry in before.items())
    short = {name: entry for name, entry in saved.items() if name != "0.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        net.load_state_dict(short)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        net.load_state_dict(saved | {"0.weight": saved["0.weight"][:2]})


def test_copies_train_alone():
    model = random_state(nets.resnet()).double()
    x, mask = images().double(), random_mask(model)
    net, dense = pair(model, mask, x, threads=2)
    assert_same_steps(net, dense, x, 2)
    before = {name: entry.clone() for name, entry in net.state_dict().items()}
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert plan(other) == plan(net)
        assert_same_steps(other, twin(restore(net), mask), x, 2)
    assert all(torch.equal(entry, before[name]) for name, entry in net.state_dict().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_read_nothing_of_the_network_that_they_are_of(copied):
    model, x = random_state(nets.vgg()).eval(), images()
    net = convert(model, random_mask(model, 0.8), x, threads=1, choice="sparse")
    expected, other = net(x), copied(net)
    for layer in kept_layers(net).values():
        for shape in layer.unit._shapes.values():
            for array in shape.arrays.values():
                array[:] = 0
    assert torch.equal(other(x), expected)


def test_a_dense_network_comes_back():
    model = random_state(nets.mobilenet()).double()
    x, mask = images().double(), random_mask(model)
    net, dense = pair(model, mask, x)
    assert_same_steps(net, dense, x, 2)
    for ways in ("dense", "sparse", plan(net)):
        back = restore(convert(restore(net), mask, x, threads=1, choice=ways))
        assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
        assert [sorted(vars(module)) for module in back.modules()] == [sorted(vars(m)) for m in model.modules()]
        assert_same_state(back, dense)
        assert_near(back.eval()(x), dense.eval()(x), 1e-8)
        dense.train()


def test_two_python_threads_with_a_network_each():
    models = [random_state(nets.resnet()) for _ in range(2)]
    x, mask = images(17), random_mask(models[0])

    def trained(model):
        net = convert(model, mask, x, threads=2, choice="sparse")
        optimizer = sgd(net)
        for _ in range(10):
            loss_of(net, x).backward()
            optimizer.step()
        return net.state_dict()

    wanted = [trained(model) for model in models]
    with ThreadPoolExecutor(2) as callers:
        found = list(callers.map(trained, models))
    for each, expected in zip(found, wanted, strict=True):
        assert all(torch.equal(each[name], entry) for name, entry in expected.items())


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3), nn.Linear(4, 3)], ids=["convolution", "linear"])
def test_the_network_itself_may_be_the_layer(layer):
    mask = pathex.Mask({"weight": torch.rand(layer.weight.shape) < 0.5})
    x = torch.randn(5, 4) if isinstance(layer, nn.Linear) else torch.randn(5, 2, 6, 6)
    net = convert(layer, mask, x, choice="sparse")
    assert plan(net) == {"": "sparse"}
    assert list(kept_layers(net)) == ["weight"]
    masked = pathex.make_permanent(copy.deepcopy(layer), mask)
    torch.testing.assert_close(net(x), masked(x))
    assert type(restore(net)) is type(layer)


def test_threads_have_ended_when_their_team_has():
    before = set(threading.enumerate())
    team = Team(4)
    own = set(threading.enumerate()) - before
    assert len(own) == 3
    del team
    gc.collect()
    assert not any(thread.is_alive() for thread in own)

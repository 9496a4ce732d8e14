"""Networks train by their kept weights as their twins in torch do, whatever users write around them."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import training_networks as nets
from dense_twin import (
    assert_near,
    assert_same_gradients,
    assert_same_state,
    assert_same_steps,
    assert_trains_alike,
    loss_of,
    pair,
    random_mask,
    random_state,
    sgd,
    twin,
)
from pathex.errors import UnsupportedOperation
from pathex.sparse import convert, dense_state, kept_state, plan, restore
from refusals import refused

NETWORKS = {
    "residual": nets.resnet,
    "residual, option A": lambda: nets.resnet("pad"),
    "residual, in place": lambda: nets.resnet("inplace"),
    "VGG with pools": nets.vgg,
    "MobileNet": nets.mobilenet,
    "DenseNet": nets.densenet,
    "preactivated": nets.preactivated,
    "looks at activations": nets.looks,
    "writes into activations": nets.writes,
    "a layer twice": nets.shared,
    "checkpoints": lambda: nets.checkpointed(False),
    "drops out": nets.dropped,
    "another way in training": nets.training_only,
    "frozen norms": nets.frozen_norms,
    "norms without momentum": lambda: nets.vgg(momentum=None),
    "norms without factors": lambda: nets.vgg(affine=False),
    "norms without statistics": lambda: nets.vgg(track_running_stats=False),
}


def images(count=6, size=12):
    return torch.randn(count, 3, size, size)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    assert_trains_alike(NETWORKS[name], images())


def test_resnet20_with_the_same_kernels_on_three_threads():
    model = random_state(nets.resnet(depth=3)).double()
    x, mask = images(18).double(), random_mask(model)
    found = []
    for threads in (1, 2, 3, 3):
        net, dense = pair(model, mask, x, threads)
        assert_same_steps(net, dense, x, 3)
        found.append(net.state_dict())
    for name, entry in found[2].items():
        assert torch.equal(entry, found[3][name]), name


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33])
def test_any_number_of_images(count):
    net, *_ = assert_trains_alike(nets.resnet, images(count, 8))
    with torch.no_grad():
        for other in (5, 20):
            x = images(other, 8).double()
            assert_near(net(x), restore(net)(x), 1e-10)


def test_masks_that_keep_nothing_in_a_layer_and_layers_outside_the_mask():
    def make():
        return nets.resnet(widths=(4, 6))

    assert_trains_alike(make, images(), removed=("3.conv1", "4.down.0"), whole=("0",))
    model = make()
    mask = random_mask(model)
    for left in (["5.2.weight"], ["0.weight", "3.conv2.weight"]):
        part = type(mask)({name: mask[name] for name in left})
        assert_same_steps(*pair(model.double(), part, images().double()), images().double(), 3)


def frozen(model):
    for part in (model[0], model[1], model[4].conv1, model[4].bn1.bias):
        part.requires_grad_(False)
    return model


def test_frozen_layers():
    net, *_ = assert_trains_alike(lambda: frozen(nets.resnet()), images())
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == {
        "0.weight", "1.weight", "1.bias", "4.conv1.weight", "4.bn1.bias",
    }  # fmt: skip


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


def test_what_is_measured_and_its_plan():
    model = random_state(nets.vgg()).double()
    x, mask = images().double(), random_mask(model, 0.1)
    net, dense = pair(model, mask, x, choice=None)
    assert plan(net).keys() == {name.removesuffix(".weight") for name in mask}
    assert_same_steps(net, dense, x, 3)
    for other, count in ((frozen(nets.resnet()), 6), (nets.looks(), 1)):
        net, dense = pair(other.double(), random_mask(other, 0.9), images(count).double(), choice=None)
        assert_same_steps(net, dense, x, 3)
    net, dense = pair(model, mask, x, choice=None)
    mixed = {path: ("sparse", "dense")[i % 2] for i, path in enumerate(plan(net))}
    net, dense = pair(model, mask, x, choice=mixed)
    assert plan(net) == mixed
    assert_same_steps(net, dense, x, 3)


HOOKS = {
    "forward": lambda module, seen: module.register_forward_hook(lambda m, x, y: seen.append(y.detach().mean().item())),
    "pre": lambda module, seen: module.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach().mean().item())),
    "changing": lambda module, seen: module.register_forward_hook(lambda m, x, y: y * 0.5 + 0.1),
    "tensor": lambda module, seen: module.register_forward_hook(
        lambda m, x, y: (
            y.register_hook(lambda g: seen.append(g.abs().mean().item())) and None if y.requires_grad else None
        )
    ),
    "statistics": lambda module, seen: module.register_forward_hook(
        torch.no_grad()(lambda m, x, y: seen.extend((y.mean().item(), x[0].square().mean().item())))
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("early", [True, False])
def test_hooks(kind, early):
    """Of the model that is converted, or of the network afterwards."""
    model = random_state(nets.resnet()).double()
    mask, x, seen = random_mask(model), images().double(), []

    def hooked(net):
        for module in (net[0], net[1], net[2], net[3], net[4].conv1, net[4].bn2):
            HOOKS[kind](module, seen)
        return net

    dense = hooked(twin(model, mask))
    if early:
        net = convert(hooked(model), mask, x, threads=1, choice="sparse")
    else:
        net = hooked(convert(model, mask, x, threads=1, choice="sparse"))
    seen.clear()
    found = []
    for each in (net, dense):
        loss_of(each, x).backward()
        found.append(torch.tensor(seen).double())
        seen.clear()
    assert kind == "changing" or len(found[1])
    assert_near(found[0], found[1], 1e-6, kind)
    assert_same_gradients(net, dense, mask, 1e-9)


def test_inputs_that_require_gradients():
    model = random_state(nets.resnet()).double()
    mask, given = random_mask(model), images().double()
    net, dense = pair(model, mask, given)
    found = []
    for each in (net, dense):
        x = given.clone().requires_grad_()
        found.append(torch.autograd.grad(loss_of(each, x), x)[0])
    assert_near(*found, 1e-9)
    grads = torch.autograd.grad(loss_of(net, given), list(net.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        sum(grad.square().sum() for grad in grads).backward()


def test_images_in_any_layout():
    model = random_state(nets.resnet()).double()
    x, mask = images().double(), random_mask(model)
    net, dense = pair(model, mask, x)
    wide = torch.randn(6, 6, 12, 24).double()
    for given in (
        x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), wide[:, ::2, :, ::2],
        x[:, :1].expand(-1, 3, -1, -1), x.flip(0)[1:],
    ):  # fmt: skip
        assert_near(net(given), dense(given), 1e-10)
    net.to(memory_format=torch.channels_last)
    assert_same_steps(net, dense, x, 3)


def test_evaluation_and_modes_without_gradients():
    model = random_state(nets.vgg()).double()
    x, mask = images().double(), random_mask(model)
    net, dense = pair(model, mask, x)
    for mode in (torch.no_grad, torch.inference_mode):
        for training in (True, False):
            with mode():
                assert_near(net.train(training)(x), dense.train(training)(x), 1e-10)
    assert_same_state(net, dense)
    assert_same_steps(net.eval(), dense.eval(), x, 3)


def test_lower_precision_is_right_or_refused():
    model = random_state(nets.resnet())
    x, mask = images(), random_mask(model)
    net, dense = pair(model, mask, x)
    with torch.autocast("cpu", torch.bfloat16):
        try:
            losses = [loss_of(each, x) for each in (net, dense)]
        except Exception as error:
            assert "\n" not in str(error) and "float32" in str(error)
        else:
            for each in losses:
                each.backward()
            assert abs(losses[0].item() - losses[1].item()) < 0.03
            assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    for wrong in (x.double(), x.bfloat16(), x.half(), x.byte()):
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            net(wrong)
    for kind in (torch.bfloat16, torch.half):
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            copy.deepcopy(net).to(kind)(x.to(kind))
    dense.load_state_dict(net.state_dict())
    assert_same_steps(net.double(), dense.double(), x.double(), 3)


def test_hooks_of_the_way_back_are_not_called_where_layers_wait_and_torch_says_so():
    model = random_state(nets.resnet())
    x = images()
    net = convert(model, random_mask(model), x, threads=1, choice="sparse")
    net[0].register_full_backward_hook(lambda module, gx, gy: None)
    with pytest.warns(UserWarning, match="backward hooks to be called"):
        net(x)


def test_reentrant_checkpoints():
    """They are told from the tensors that they are given."""
    x = images().double()
    model = random_state(nets.checkpointed(True)).double()
    mask = random_mask(model)
    net, dense = pair(model, mask, x)
    with pytest.warns(UserWarning, match="requires_grad"), refused("use_reentrant=False", UnsupportedOperation):
        net(x)
    model = nets.vgg().double()
    mask = random_mask(model)
    net, dense = pair(model, mask, x)
    for each in (net, dense):
        loss_of(lambda x, each=each: checkpoint(each, x, use_reentrant=True), x.clone().requires_grad_()).backward()
    assert_same_gradients(net, dense, mask, 1e-9)


def test_a_module_by_two_names():
    assert_trains_alike(nets.Named, images())


def test_modules_that_go_on_after_the_conversion():
    """Norms, pools and sums that are put in another place, frozen or changed once layers wait for them."""
    model = random_state(nets.resnet()).double()
    x, mask = images().double(), random_mask(model)
    for change in (
        lambda net: net[1].eval(),
        lambda net: net[3].__setattr__("relu", nn.Sigmoid()),
        lambda net: net[3].__setattr__("bn1", nn.GroupNorm(2, 4).double()),
        lambda net: net[4].__setattr__("bn2", nn.Identity()),
        lambda net: net.__setitem__(2, nn.Sequential(nn.ReLU6(), nn.Conv2d(4, 4, 1).double().requires_grad_(False))),
        lambda net: net.requires_grad_(False)[6].requires_grad_(True),
        lambda net: net[3].eval().conv1.requires_grad_(False),
    ):
        net, dense = pair(model, mask, x)
        for each in (net, dense):
            torch.manual_seed(0)
            change(each)
        assert_same_steps(net, dense, x, 3)

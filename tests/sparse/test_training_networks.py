"""Networks train by their kept weights as their twins in torch do, whatever users write around them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import training_networks as nets
from brute_force.cases import Wired
from dense_twin import (
    assert_near,
    assert_same_gradients,
    assert_same_state,
    assert_same_steps,
    assert_trains_alike,
    images,
    loss_of,
    pair,
    random_mask,
    random_state,
    twin,
)
from pathex.errors import UnsupportedOperation
from pathex.sparse import convert, plan, restore
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
    "adds to itself": nets.doubled,
    "a layer twice": nets.shared,
    "checkpoints": lambda: nets.checkpointed(False),
    "drops out": nets.dropped,
    "another way in training": nets.training_only,
    "frozen norms": nets.frozen_norms,
    "norms without momentum": lambda: nets.vgg(momentum=None),
    "norms without factors": lambda: nets.vgg(affine=False),
    "norms without statistics": lambda: nets.vgg(track_running_stats=False),
}


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
        for other, size in ((5, 8), (20, 11), (3, 1)):
            x = images(other, size).double()
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
    for each in (net, restore(net)):
        still = {name for name, entry in each.named_parameters() if not entry.requires_grad}
        assert still == {"0.weight", "1.weight", "1.bias", "4.conv1.weight", "4.bn1.bias"}


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


def added(net, x):
    x = net.a(x)
    y = net.b(x) + x
    x += 1  # which a layer has read
    return F.relu(y) * x


def added_tensor(net, x):
    x = torch.sigmoid(net.a(x))
    y = net.b(x) + x
    x.mul_(2)
    return F.relu(y) * x


@pytest.mark.parametrize("form", [added, added_tensor])
@pytest.mark.parametrize("count", [3, 8, 9])  # less than a block, one, more
def test_what_waits_to_be_added_is_as_it_was(form, count):
    model = random_state(Wired(form, a=nets.unit(3, 4, act=None), b=nets.unit(4, 4, act=None))).double()
    x = images(count).double()
    net, dense = pair(model, random_mask(model), x)
    with torch.no_grad():
        assert_near(net.eval()(x), dense.eval()(x), 1e-10)


def test_writes_without_gradients():
    def form(net, x):
        x = net.a(x)
        with torch.no_grad():
            x.add_(1)
        return net.head(F.relu(x))

    assert_trains_alike(lambda: Wired(form, a=nets.unit(3, 4, act=None), head=nets.head(4)), images())


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


@pytest.mark.xfail(reason="what waits for the next layer is no torch.Tensor", raises=AssertionError)
def test_what_waits_is_a_tensor():
    def form(net, x):
        x = net[0](x)
        assert isinstance(x, torch.Tensor)
        return net[1](x)

    parts = nn.Sequential(nets.unit(3, 4), nets.unit(4, 4))
    model = Wired(lambda net, x: form(net.parts, x), parts=parts)
    convert(model, random_mask(model), images(), threads=1, choice="sparse")(images())


def test_outputs_of_every_depth():
    """What is both read by a layer and given back, with gradients of some of the outputs."""

    def form(net, x):
        a = net.a(x)
        b = net.b(a)
        return [a, b, net.c(b)]

    model = Wired(form, a=nets.unit(3, 4), b=nets.unit(4, 4), c=nets.unit(4, 4)).double()
    mask, x = random_mask(model), images().double()
    net, dense = pair(model, mask, x)
    for used in ([0], [1], [2], [0, 2], [0, 1, 2]):
        for each in (net, dense):
            each.zero_grad()
            outputs = each(x)
            assert {type(y) for y in outputs} == {torch.Tensor}
            sum(outputs[i].sin().sum() for i in used).backward(retain_graph=True)
            outputs[used[-1]].sum().backward()
        assert_same_gradients(net, dense, mask, 1e-9)

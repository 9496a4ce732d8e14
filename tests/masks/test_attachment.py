import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import pathex
from moving_masks import begin, network, outside_is_zero, random_mask, sgd, train, train_scaled
from pathex.errors import InvalidInput, MaskMismatch, PathexWarning
from pathex.pruning import dynamic
from refusals import refused
from snapshots import unchanged

model = pytest.fixture(lambda: network(0), name="model")
mask = pytest.fixture(random_mask, name="mask")


def holds(model, mask):
    """Removed weights are zero and kept ones are not."""
    return all(torch.equal(model.get_parameter(name) != 0, entry) for name, entry in mask.items())


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


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


@pytest.mark.parametrize("assign", [False, True])
def test_loading_dense_weights_does_not_fill_them(model, mask, assign):
    dense, other = network().state_dict(), network()
    pathex.attach(model, mask)
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


class Bare(torch.optim.Optimizer):
    """Whose ``__init__`` calls no other, and which wraps nothing."""

    param_groups: list = []  # noqa: RUF012

    def step(self, closure=None):
        raise NotImplementedError


BAD = {
    "'fc.weight' is not there": (MaskMismatch, lambda m, mask: (other("fc.weight"),)),
    "'4.weight' has shape": (MaskMismatch, lambda m, mask: (other("4.weight"), sgd(m))),
    "made for another model": (InvalidInput, lambda m, mask: (mask, sgd(network()))),
    "not dict": (InvalidInput, lambda m, mask: (dict(mask),)),
    "Optimizer, not str": (InvalidInput, lambda m, mask: (mask, "sgd")),
    "hold no 4.weight: .* Give all": (InvalidInput, lambda m, mask: (mask, sgd(m[:3]))),
    "hold no 0.weight, 4.weight": (InvalidInput, lambda m, mask: (mask, [])),
    "runs no hooks": (InvalidInput, lambda m, mask: (mask, object.__new__(Bare))),
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


def forgotten(model, mask, *optimizers):
    """No gradient of a removed weight, and nothing that an optimizer remembers of one."""
    parameters = {name: model.get_parameter(name) for name in mask}
    memories = [
        value[~mask[name]]
        for name, parameter in parameters.items()
        for optimizer in optimizers
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
    ]
    gradients = [p.grad[~mask[name]] for name, p in parameters.items() if p.grad is not None]
    return memories and not any(tensor.any() for tensor in (*memories, *gradients))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded])
@pytest.mark.parametrize("adam", [False, True])
def test_copies_of_any_kind_and_copies_of_these_train_with_zeros(model, mask, copied, adam):
    pathex.attach(model, mask, sgd(model))
    for _ in range(2):
        model = copied(model)
        own = AdamW(model.parameters(), lr=0.01, weight_decay=0.1) if adam else sgd(model)
        train(model, own, range(3))
        assert holds(model, mask) and forgotten(model, mask, own)
        model[0].load_state_dict(network()[0].state_dict())
        assert holds(model, mask)


def test_a_part_and_a_handle_are_copied_with_what_they_hold(model, mask):
    whole = nn.ModuleDict({"net": model})
    whole.handle = pathex.attach(model, mask, sgd(model))
    part = copy.deepcopy(model[4])
    twin = pickle.loads(pickle.dumps(whole))
    for net, entries in ((nn.Sequential(nn.Flatten(0, -1), part), {"1.weight": mask["4.weight"]}), (twin["net"], mask)):
        optimizer = sgd(net)
        net(torch.ones(2, 2, 4, 4) if net is twin["net"] else torch.ones(96)).square().sum().backward()
        optimizer.step()
        assert holds(net, entries)
    twin.handle.remove()
    train(twin["net"], optimizer, range(1))
    assert not holds(twin["net"], mask) and holds(model, mask)
    assert not any(module._load_state_dict_post_hooks for module in twin.modules())


def test_a_permanent_mask_leaves_nothing_of_pathex_in_the_file(model, mask):
    handle = pathex.attach(model, mask, sgd(model))
    assert b"pathex" in pickle.dumps(model)
    pathex.make_permanent(model, mask)
    handle.remove()
    assert b"pathex" not in pickle.dumps(model)


@pytest.mark.parametrize("added", [True, False])
def test_a_layer_that_is_replaced_keeps_to_the_mask(model, mask, added):
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    train(model, optimizer, [0])
    model[4] = nn.Linear(96, 4)
    if added:
        optimizer.add_param_group({"params": model[4].parameters()})
        train(model, optimizer, range(3))
        assert holds(model, mask) and forgotten(model, mask, optimizer)
    else:
        with pytest.warns(PathexWarning, match="'4.weight' of the attached mask is now in none of its optimizers"):
            train(model, optimizer, range(1))
    model[4].load_state_dict(nn.Linear(96, 4).state_dict())
    assert holds(model, mask)


@pytest.mark.parametrize(
    "new", [nn.Linear(96, 7), nn.Sequential(nn.Linear(96, 4)), nn.Linear(96, 4, dtype=torch.float64)]
)
def test_what_cannot_keep_to_the_mask_is_said_once(model, mask, new):
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    model[4] = new
    if new.state_dict().get("weight", torch.ones(0)).shape == mask["4.weight"].shape:
        model.double()
        optimizer.add_param_group({"params": new.parameters()})
        train(model, optimizer, range(3))
        assert holds(model, mask)
        return
    with pytest.warns(PathexWarning, match="'4.weight' of the attached mask is no longer there"):
        train(model, optimizer, [0])
    train(model, optimizer, range(3))
    assert holds(model, {"0.weight": mask["0.weight"]})


def test_parameters_that_are_assigned_or_thawed_are_found(model, mask):
    model[0].weight.requires_grad = False
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    train(model, optimizer, range(2))
    model[0].weight.requires_grad = True
    train(model, optimizer, range(2))
    assert holds(model, mask) and forgotten(model, mask, optimizer)
    model.load_state_dict(network().state_dict(), assign=True)
    alone = sgd(model)
    train(model, alone, range(2))
    assert holds(model, mask) and forgotten(model, mask, alone)


def test_several_optimizers_forget_what_they_knew_and_keep_zeros(model, mask):
    optimizers = [sgd(model[:2]), AdamW(model[2:].parameters(), weight_decay=0.1)]

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(3, 2, 4, 4)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()

    step()
    known = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    handle = pathex.attach(model, mask, iter(optimizers))
    for again in (False, True):
        if again:
            for optimizer, state in zip(optimizers, known, strict=True):
                optimizer.load_state_dict(state)
        step()
        assert holds(model, mask) and forgotten(model, mask, *optimizers)
    handle.remove()
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_load_state_dict_post_hooks")
    assert not any(getattr(optimizer, name) for optimizer in optimizers for name in hooks)


@pytest.mark.parametrize("attached_first", [True, False])
@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: AdamW(p, weight_decay=0.1)]
)
def test_optimizers_that_step_inside_the_backward_pass(model, mask, make, attached_first):
    optimizers = {parameter: make([parameter]) for parameter in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for turn in (attached_first, not attached_first):
        if turn:
            pathex.attach(model, mask, optimizers.values())
        else:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        model(torch.randn(3, 2, 4, 4)).square().sum().backward()
        assert holds(model, mask) and forgotten(model, mask, *optimizers.values())


def test_gradients_from_before_and_of_reentrant_checkpoints_enter_no_momentum(model, mask):
    optimizer, x = sgd(model), torch.randn(3, 2, 4, 4, requires_grad=True)
    model(x).square().sum().backward()
    pathex.attach(model, mask, optimizer)
    for _ in range(3):
        optimizer.step()
        assert holds(model, mask) and forgotten(model, mask, optimizer)
        inner = checkpoint(model[:3], x, use_reentrant=True)
        model[3:](checkpoint(model[1:3], inner, use_reentrant=True)).square().sum().backward()


def test_gradients_given_by_hand_and_sparse_ones(model, mask):
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert holds(model, mask) and forgotten(model, mask, optimizer)
    table = nn.Embedding(5, 3, sparse=True)
    kept = pathex.Mask({"weight": torch.eye(5, 3) > 0})
    optimizer = torch.optim.SGD(table.parameters(), 0.1)
    pathex.attach(table, kept, optimizer)
    table(torch.arange(5)).sum().backward()
    optimizer.step()
    assert outside_is_zero(table, kept)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute")
def test_backward_passes_that_are_compiled(model, mask):
    optimizer = AdamW(model.parameters(), weight_decay=0.1)
    pathex.attach(model, mask, optimizer)
    forward = torch.compile(model, backend="eager")
    x = torch.randn(3, 2, 4, 4)
    backward = torch.compile(lambda: forward(x).square().sum().backward(), backend="eager")
    with torch._dynamo.config.patch(compiled_autograd=True):
        for _ in range(2):
            optimizer.zero_grad()
            backward()
            optimizer.step()
            assert holds(model, mask) and forgotten(model, mask, optimizer)


class Wrapper(torch.optim.Optimizer):
    """Around another optimizer, without a state or hooks of its own."""

    def __init__(self, inner):
        self.wrapped = inner

    @property
    def param_groups(self):
        return self.wrapped.param_groups

    def step(self, closure=None):
        self.wrapped.step(closure)

    def zero_grad(self, set_to_none=True):
        self.wrapped.zero_grad(set_to_none)


@pytest.mark.parametrize(
    "wrap", [Wrapper, lambda inner: Wrapper(Wrapper(inner)), Fabric(accelerator="cpu").setup_optimizers]
)
@pytest.mark.parametrize("method", [None, *dynamic.METHODS])
def test_optimizers_inside_of_others_are_found(model, mask, wrap, method):
    optimizer = wrap(AdamW(model.parameters(), lr=0.05, weight_decay=0.1))
    if method is None:
        handle = pathex.attach(model, mask, optimizer)
    else:
        _, handle = begin(model, method, mask, optimizer)
    train(model, optimizer, range(9))
    assert outside_is_zero(model, handle.mask) and getattr(handle, "updates", 2) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_networks_without_a_place_for_a_mask_are_refused():
    scripted, empty = torch.jit.script(nn.Linear(2, 2)), nn.Linear(2, 2, device="meta")
    for call in (pathex.attach, pathex.make_permanent):
        for model, message in ((scripted, "a scripted network takes no mask"), (empty, "weight: on the device 'meta'")):
            with refused(message):
                call(model, pathex.Mask({"weight": torch.ones(2, 2) > 0}))


def test_an_attached_model_can_be_collected(mask):
    model = network()
    optimizer = sgd(model)
    handle = pathex.attach(model, mask, optimizer)
    train(model, optimizer, [0])
    known = weakref.ref(model), weakref.ref(model[0].weight)
    del model, optimizer, handle
    gc.collect()
    assert known[0]() is None and known[1]() is None

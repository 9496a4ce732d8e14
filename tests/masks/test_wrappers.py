import copy

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel

import pathex
from moving_masks import network, outside_is_zero, random_mask, sgd, train
from pathex.masks import own_module, read_mask
from pathex.masks.formats import apply_torch_prune, complete, from_torch_prune, from_zeros, to_sparse
from refusals import refused
from snapshots import unchanged

fabric = Fabric(accelerator="cpu", devices=1)


def nested():
    """Two levels, on both of which a part may be wrapped."""
    net = network()
    return nn.Sequential(nn.Sequential(net[0], net[1]), *net[2:])


def compiled(module):
    return torch.compile(module, backend="eager")


def within(wrap, *path):
    def wrapped(model):
        module = model
        for part in path[:-1]:
            module = module[part]
        module[path[-1]] = wrap(module[path[-1]])
        return model

    return wrapped


WRAPPERS = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "compiled, parallel": lambda model: nn.DataParallel(compiled(model)),
    "parallel, compiled": lambda model: compiled(nn.DataParallel(model)),
    "fabric": fabric.setup_module,
    "part, fabric": lambda model: fabric.setup_module(within(compiled, 3)(model)),
    "average": AveragedModel,
    "part": within(compiled, 0),
    "part of a part": within(compiled, 0, 0),
    "parallel part": within(nn.DataParallel, 3),
    "part, in place": lambda model: (within(compiled, 0)(model), model.compile(backend="eager"))[0],
    "part of a part, compiled": lambda model: compiled(within(compiled, 0, 1)(model)),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute"
)


@every_wrapper
def test_scores_and_masks_are_those_of_the_plain_network_which_stays_as_it_was(wrap):
    plain, x = nested(), torch.randn(2, 2, 4, 4)
    wrapped = wrap(copy.deepcopy(plain))
    with unchanged(wrapped):
        for method in ("px", "snip"):
            data = [(x, torch.arange(2))]
            expected, found = (pathex.score(model, method, data) for model in (plain, wrapped))
            assert list(found) == list(expected)
            assert all(torch.equal(found[name], score) for name, score in expected.items())
        mask = pathex.prune(wrapped, "magnitude", sparsity=0.5, data=x).mask
    assert mask == pathex.prune(plain, "magnitude", sparsity=0.5, data=x).mask
    mask.check(wrapped)
    assert list(to_sparse(mask, wrapped)) == list(to_sparse(mask, plain))
    assert from_torch_prune(apply_torch_prune(wrapped, mask)) == mask


@every_wrapper
def test_a_mask_holds_inside_and_loading_the_wrapped_model_does_not_end_it(wrap):
    wrapped, mask = wrap(nested()), random_mask(nested())
    optimizer = sgd(wrapped)
    handle = pathex.attach(wrapped, mask, optimizer)
    train(wrapped, optimizer, range(2))
    assert outside_is_zero(own_module(wrapped), mask)
    dense = {name: torch.ones_like(tensor) for name, tensor in wrapped.state_dict().items()}
    wrapped.load_state_dict(dense)
    assert from_zeros(wrapped) == mask
    handle.remove()
    wrapped.load_state_dict(dense)
    pathex.make_permanent(wrapped, mask)
    assert from_zeros(wrapped) == mask and own_module(wrapped)[0][1].weight.all()


@every_wrapper
def test_files_of_wrapped_networks_fit_plain_ones_and_the_other_way(wrap, tmp_path):
    plain, mask = nested(), random_mask(nested())
    pathex.make_permanent(plain, mask)
    wrapped = wrap(copy.deepcopy(plain))
    torch.save(wrapped.state_dict(), tmp_path / "wrapped.pt")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    for model in (nested(), wrap(nested())):
        for file in ("wrapped.pt", "plain.pt"):
            assert read_mask(tmp_path / file, model) == mask
            assert not pathex.models.load_weights(model, tmp_path / file).missing
        state = own_module(model).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())


def test_a_part_may_be_compiled_or_replaced_after_the_mask_was_attached():
    model, mask = nested(), random_mask(nested())
    optimizer = sgd(model)
    pathex.attach(model, mask, optimizer)
    model[0] = compiled(model[0])
    train(model, optimizer, range(2))
    assert outside_is_zero(own_module(model), mask) and isinstance(own_module(model)[0], nn.Sequential)
    assert own_module(model) is not model and own_module(nested()[0]).__class__ is nn.Sequential
    model[0] = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))
    optimizer.add_param_group({"params": model[0].parameters()})
    train(model, optimizer, range(2))
    assert outside_is_zero(own_module(model), mask)


def test_a_view_shares_all_but_the_children_on_the_way():
    model = nested()
    shared = model[3]
    model.append(shared)
    model[0][1] = compiled(model[0][1])
    own = own_module(model)
    assert own[0] is not model[0] and own[0][0] is model[0][0] and own[3] is own[4] is shared
    assert own[0]._parameters is model[0]._parameters and own._forward_hooks is model._forward_hooks
    assert own_module(shared) is shared
    twin = copy.deepcopy(own)
    assert twin.state_dict().keys() == own.state_dict().keys() and "0.1.weight" in own.state_dict()


FlattenedType = type("FullyShardedDataParallel", (nn.Module,), {})


def test_flattened_weights_are_refused_wherever_they_are():
    for model in (FlattenedType(), nn.Sequential(nn.Linear(2, 2), FlattenedType())):
        with refused("flattens weights together"):
            own_module(model)


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "net.encoder.", "module.model._orig_mod."])
def test_one_prefix_too_much_is_taken_off(prefix, tmp_path):
    model, mask = nested(), random_mask(nested())
    assert complete(pathex.Mask({f"{prefix}{name}": entry for name, entry in mask.items()}), model) == mask
    state = {f"{prefix}{name}": tensor for name, tensor in pathex.make_permanent(model, mask).state_dict().items()}
    assert from_zeros(state, nested()) == mask
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(4)}}, tmp_path / "w.ckpt")
    assert read_mask(tmp_path / "w.ckpt", nested()) == mask
    with refused(r"do not fit Sequential: unexpected: criterion\.weight"):
        pathex.models.load_weights(nested(), tmp_path / "w.ckpt")
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    assert not pathex.models.load_weights(nested(), tmp_path / "w.ckpt").missing
    with refused(r"they lack 0\.0\.weight"):  # of two networks none is chosen
        from_zeros({f"{name}.{key}": tensor for name in "ab" for key, tensor in model.state_dict().items()}, nested())


def test_a_module_selects_itself_in_the_view_of_a_network_with_wrapped_parts():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(super().forward(x))

    model = nn.Sequential(Scaled(), nn.Linear(4, 2))
    model[0].inner = compiled(model[0].inner)
    mask = pathex.prune(model, "magnitude", sparsity=0.5, data=torch.ones(1, 4), ignore=[model[0]]).mask
    assert list(mask) == ["1.weight"]
    assert "0.weight" in pathex.prune(model, "magnitude", sparsity=0.5, data=torch.ones(1, 4), ignore=[model[1]]).mask

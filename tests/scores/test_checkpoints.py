"""Checkpoints of searches: what goes on from them, and what does not."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from brute_force.cases import random_mask
from damage import spoil
from pathex.masks import Mask
from pathex.scores import search
from refusals import refused
from scores.searching import every_search, searched, small

pytestmark = [
    # Networks as small as these lose layers.
    pytest.mark.filterwarnings("ignore::pathex.errors.LayerCollapse"),
]


class Stopped(Exception):
    pass


@every_search
def test_a_stopped_search_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_SECONDS", 0)
    model, method, data, options = small(name)
    path = tmp_path / "search.ckpt"
    if name == "cts":
        options |= {"sparsity": 0.9, "seed": 1}  # where GradBalance has a multiplier that goes on

    def go(stop=None, **how):
        """The values of a search, its mask, and the steps that were told, up to one that stops it."""
        told = []

        def tell(done, total):
            told.append((done, total))
            if done == stop:
                raise Stopped

        with pytest.raises(Stopped) if stop else nullcontext():
            return *searched(model, method, data, on_step=tell, **how, **options)[1:], told
        return None, None, told

    done = {
        "cts": (3, 6, 9, 12),
        "cts-kl": (3, 6),
        "edge-popup": (3, 6, 9),
        "dpai": (100, 120),
        "widetopo": range(1, 7),
    }
    steps = [(step, done[name][-1]) for step in done[name]]
    whole, mask, told = go()
    assert told == steps
    middle = (len(steps) + 1) // 2
    assert go(stop=steps[middle - 1][0], checkpoint=path)[-1] == steps[:middle]
    assert name != "cts" or torch.load(path)["more"]["balance"] > 0
    for left in (steps[middle:], []):
        values, same, told = go(checkpoint=path)
        assert told == left and same == mask
        assert all(torch.equal(entry, whole[weight]) for weight, entry in values.items())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_names_functions_as_every_process_does(tmp_path):
    model, method, data, options = small()
    path = tmp_path / "search.ckpt"
    pathex.prune(model, method, sparsity=0.4, data=data, checkpoint=path, loss=F.cross_entropy, **options)
    assert torch.load(path)["search"]["option loss"] == "torch.nn.functional.cross_entropy"
    for loss in (lambda outputs, labels: outputs.sum(), nn.CrossEntropyLoss()):
        with refused("checkpoint= cannot tell loss=.* again: a function of a module can be told"):
            pathex.prune(model, method, sparsity=0.4, data=data, checkpoint=path, loss=loss, **options)


def changed(model, data):
    """What may differ beside a checkpoint, by the word that names it, and how."""
    other = copy.deepcopy(model)
    other[1].running_mean += 1
    removed = Mask(random_mask(model, 1, 0.95))
    return {
        "seed": {"seed": 1},
        "sparsity or allocation": {"sparsity": 0.5},
        "option lr": {"lr": 0.2},
        "option loss": {"loss": F.cross_entropy},
        "pruning set": {"data": [(x + 1, y) for x, y in data]},
        "labels": {"data": [(x, 1 - y) for x, y in data]},
        "weights": {"model": other},
        "start mask": {"mask": removed},
        "network": {"model": nn.Sequential(*model[:2], nn.Tanh(), *model[3:])},
    }


WORDS = [*changed(*small()[:3:2])]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of a search, and what it was of."""
    model, method, data, options = small()
    path = tmp_path_factory.mktemp("search") / "search.ckpt"
    pathex.prune(model, method, sparsity=0.4, data=data, checkpoint=path, **options)
    return path, {"model": model, "method": method, "sparsity": 0.4, "data": data, **options}


@pytest.mark.parametrize("word", WORDS)
def test_the_checkpoint_of_another_search_is_refused(written, word):
    path, given = written
    before, how = path.read_bytes(), given | changed(given["model"], given["data"])[word]
    with refused(
        rf"checkpoint .*search\.ckpt is of another search \(other {word}.*\); remove it, or name another file"
    ):
        pathex.prune(checkpoint=path, **how)
    assert path.read_bytes() == before


def test_the_checkpoint_of_another_method_or_of_batches_of_other_sizes_is_refused(written, tmp_path):
    path, given = written
    model, method, data, options = small("widetopo")
    with refused(r"is of another search \(other method, option"):
        pathex.prune(model, method, sparsity=0.4, data=data, checkpoint=path, **options)
    how = {"model": model, "method": method, "sparsity": 0.4, "checkpoint": tmp_path / "own.ckpt", **options}
    pathex.prune(data=data, **how)
    with refused(r"is of another search \(other batches\)"):
        pathex.prune(data=data[::-1], **how)
    # The others take images in an order of their own.
    first = pathex.prune(**given)
    assert pathex.prune(**given | {"data": data[::-1]}, checkpoint=path).mask == first.mask


@pytest.mark.parametrize("damage", [10, "nothing", b"\x80\x04"], ids=["cut", "text", "bytes"])
def test_a_damaged_checkpoint_is_refused(written, damage, tmp_path):
    path = tmp_path / "search.ckpt"
    path.write_bytes(written[0].read_bytes())
    spoil(path, damage)
    with refused(r"checkpoint .*search\.ckpt cannot be read \(.*\); remove it to begin anew"):
        pathex.prune(checkpoint=path, **written[1])


def test_a_checkpoint_of_which_a_byte_changed_or_of_something_else_is_refused(written, tmp_path):
    path, content = tmp_path / "search.ckpt", bytearray(written[0].read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with refused("cannot be read"):
        pathex.prune(checkpoint=path, **written[1])
    for other in ([1], {"model": {}}, {"search": 3}):
        torch.save(other, path)
        with refused("is of no search; remove it, or name another file"):
            pathex.prune(checkpoint=path, **written[1])


def test_methods_that_do_not_search_have_no_checkpoint_and_no_steps(tmp_path):
    model, _, data, _ = small()
    for method in ("px", pathex.scores.find("snip"), lambda model, batches, mask: {}):
        with refused("checkpoint= is for methods that search: dpai, edge-popup, cts, widetopo; not "):
            pathex.prune(model, method, sparsity=0.4, data=data, checkpoint=tmp_path / "search.ckpt")
    for wrong in (3, tmp_path, tmp_path / "none" / "search.ckpt"):
        with refused("must name a file in a folder that exists"):
            pathex.prune(model, "dpai", sparsity=0.4, data=data, steps=1, checkpoint=wrong)
    pathex.prune(model, "px", sparsity=0.4, data=data, on_step=lambda *step: pytest.fail(str(step)))
    assert not [*tmp_path.iterdir()]

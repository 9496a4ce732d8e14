"""Batches as loaders of other projects deliver them, and networks with several inputs."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from brute_force.cases import Wired, assert_close
from pathex.errors import InvalidInput, PathexWarning
from variants import SCORERS

X = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(6) % 3
A, B = X[:, :2], X[:, 2:]


def layers():
    torch.manual_seed(0)
    convs = {"left": nn.Conv2d(2, 4, 3), "right": nn.Conv2d(2, 4, 3), "shared": nn.Conv2d(4, 4, 3)}
    return {name: layer.double() for name, layer in {**convs, "fc": nn.Linear(4, 3)}.items()}


def joint(net, a, b):
    one, two = (net.shared(branch.relu()).relu().mean((2, 3)) for branch in (net.left(a), net.right(b)))
    return net.fc(one + two)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        for name, layer in layers().items():
            setattr(self, name, layer)

    def forward(self, depth, colour):
        return joint(self, depth, colour)


def one():
    """The same network, with both inputs in the channels of one."""
    return Wired(lambda net, x: joint(net, x[:, :2], x[:, 2:]), **layers())


Batch = namedtuple("Batch", ["target", "colour", "depth"])
FORMS = {
    "pair": ((A, B), Y),
    "batches": [((A[:4], B[:4]), Y[:4]), ((A[4:], B[4:]), Y[4:])],
    "lists": [[[A, B], Y]],
    "arguments by name": {"depth": A, "colour": B, "labels": Y, "path": ["a.png"] * 6},
    "by name beside labels": [({"colour": B, "depth": A}, Y)],
    "named tuple": [Batch(Y, B, A)],
    "reordered": [((A.flip(0), B.flip(0)), Y.flip(0))],
}
OPTIONS = {"ntk-sap": {"inputs": "data"}, "px-cvpr24": {}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["px", "snip"])
def test_several_inputs_in_every_form(method, form):
    expected = pathex.score(one(), method, (X, Y), calibration="batch")
    found = pathex.score(Two(), method, FORMS[form], calibration="batch")
    assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:.*derived for piecewise-linear")
@pytest.mark.parametrize("method", SCORERS)
def test_several_inputs_score_as_one_with_more_channels(method):
    options = OPTIONS.get(method, {})
    expected, found = (
        pathex.score(one(), method, (X, Y), **options),
        pathex.score(Two(), method, ((A, B), Y), **options),
    )
    assert any(score.any() for score in expected.values())
    if method in ("phew", "hutchinson-taylor"):  # which draw in another order
        return
    assert_close(found, expected, rtol=1e-9)
    single = pathex.prune(one(), method, sparsity=0.6, data=(X, Y), rounds=2, **options)
    double = pathex.prune(Two(), method, sparsity=0.6, data=((A, B), Y), rounds=2, **options)
    assert single.mask == double.mask and single.report == double.report


def test_memory_cuts_several_inputs_as_one():
    whole = pathex.score(Two(), "px", ((A, B), Y))
    with pytest.warns(PathexWarning, match="memory"):
        parts = pathex.score(Two(), "px", ((A, B), Y), memory=4096)
    assert_close(parts, whole)


class Captioned(nn.Module):
    def __init__(self, words=None):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.text = words, nn.Embedding(5, 3).double()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(100, 3)).double()

    def forward(self, x, words=None):
        return (self.image(x) + self.text(self.words if words is None else words)).relu()


def test_dictionaries_are_joined_by_name_whatever_their_order():
    given = pathex.score(Two(), "px", {"depth": A, "colour": B})
    parts = [{"depth": A[:2], "colour": B[:2]}, {"colour": B[2:], "depth": A[2:]}]
    torch.testing.assert_close(pathex.score(Two(), "px", parts), given)


@pytest.mark.parametrize("method", ["px", "snip"])
def test_a_network_may_write_into_its_inputs(method):
    class Writing(nn.Linear):
        def forward(self, x, words):
            return super().forward(x.mul_(2)) + words.clamp_(0, 2)[:, None]

    x, words = torch.randn(6, 3), torch.arange(6)
    before = x.clone()
    pathex.score(Writing(3, 3), method, ((x, words), Y))
    assert torch.equal(x, before)
    assert torch.equal(words, torch.arange(6))


@pytest.mark.filterwarnings("ignore:.*derived for piecewise")
@pytest.mark.parametrize("method", ["px", "snip"])
def test_masks_of_images_are_read_and_none_stands_for_nothing(method):
    class Masked(nn.Linear):
        def forward(self, x, mask=None):
            return super().forward(x) if mask is None else super().forward(x) * mask

    torch.manual_seed(0)
    x, net, some = torch.randn(6, 4), Masked(4, 3), torch.tensor([[True, False, True]] * 6)
    whole, given, masked = (pathex.score(net, method, (x, Y)) for x in (x, (x, None), (x, some)))
    assert_close(given, whole)
    assert masked["weight"][[0, 2]].all() and (
        method == "snip" or torch.equal(masked["weight"], whole["weight"] * some[:1].T)
    )


def test_numbers_of_tokens_are_no_images():
    words = torch.arange(6) % 5
    given = pathex.score(Captioned(), "snip", ((X, words), Y))
    torch.testing.assert_close(given, pathex.score(Captioned(words), "snip", [(X, Y)]))
    assert pathex.score(Captioned(), "px", ((X, words), Y))["image.1.weight"].any()


def test_a_callable_gets_what_was_delivered():
    def scorer(model, batches, mask):
        ((inputs, labels),) = batches
        F.cross_entropy(model(**inputs) if isinstance(inputs, dict) else model(*inputs), labels).backward()
        return {name: (p * p.grad).abs() for name, p in model.named_parameters()}

    by_name, by_position = ({"colour": B, "depth": A}, Y), ((A, B), Y)
    found = [pathex.score(Two(), scorer, [batch])["fc.weight"] for batch in (by_name, by_position)]
    assert torch.equal(*found) and found[0].any()


def test_weights_alone_are_read_whatever_the_network_takes():
    net = Wired(lambda net, *inputs: 1 / 0, fc=nn.Linear(4, 4))
    for method in ("magnitude", "random"):
        assert pathex.score(net, method, torch.ones(1, 3))["fc.weight"].any()
        with pytest.warns(PathexWarning, match="not counted"):
            assert pathex.prune(net, method, sparsity=0.5, data=torch.ones(1, 3)).mask.kept == 8


class Tagged(torch.Tensor):
    """As loaders deliver that carry something along."""


Pair = namedtuple("Pair", ["image", "path"])
SINGLE = {
    "dictionary": {"image": X, "target": Y},
    "with more in it": [{"img": X, "y": Y, "index": torch.arange(6), "name": list("abcdef")}],
    "subclass": [(X.as_subclass(Tagged), Y.as_subclass(Tagged))],
    "probabilities": (X, F.one_hot(Y, 3).double()),
    "batches of probabilities": [(X[:4], F.one_hot(Y, 3)[:4].double()), (X[4:], F.one_hot(Y, 3)[4:].double())],
    "metadata": [(X, Y, torch.arange(6))],
    "small integers": (X, Y.to(torch.uint8)),
}


@pytest.mark.parametrize("form", SINGLE)
def test_one_input_in_every_form(form):
    expected = pathex.score(one(), "snip", (X, Y))
    found = pathex.score(one(), "snip", SINGLE[form])
    assert_close(found, expected)
    assert all(type(score) is torch.Tensor for score in found.values())


def test_names_may_be_given():
    odd = [{"scan": X, "image": X * 0, "grade": Y}]
    found = pathex.score(one(), "snip", odd, keys=("scan", "grade"))
    assert torch.equal(found["fc.weight"], pathex.score(one(), "snip", (X, Y))["fc.weight"])
    assert pathex.prune(
        Two(), "px", sparsity=0.5, data={"depth": A, "colour": B}, keys=(("depth", "colour"), None)
    ).mask


REFUSED = {
    "a module wants two": (
        X,
        Two,
        r"Two.forward\(depth, colour\) does not take what data delivers .*\(\(x1, x2\), y\)",
    ),
    "one too many": ([((A, B, A), Y)], Two, "does not take what data delivers"),
    "no such argument": (
        [({"depth": A, "color": B}, Y)],
        Two,
        "does not take .*missing .* argument: 'colour'",
    ),
    "inputs of other lengths": ([((A, B[:3]), Y)], Two, r"has inputs of shapes \(6, .*\), \(3, .*\), which"),
    "a number among inputs": ([((A, torch.tensor(2.0)), Y)], Two, r"has inputs of shapes \(6, .*\), \(\), which"),
    "one input, then two": ([(A, Y), ((A, B), Y)], Two, "must have one shape"),
    "other names": ([({"depth": A, "colour": B}, Y), ({"depth": A, "color": B}, Y)], Two, "'color'.*'colour'"),
    "no batch dimension": (list(X.float()), one, r"shape \(4, 5, 5\); images are \(N, ...\): add a batch dimension"),
    "one image with its label": ([(A[0], 1)], Two, "add a batch dimension"),
    "a data set": (list(zip(torch.randn(5, 3, 7), [0] * 5, strict=True)), one, "and no labels but int; .* DataLoader"),
    "bytes": ([((X * 9).to(torch.uint8), Y)], one, r"images of torch.uint8; scale them .*x.float\(\) / 255"),
    "boxes": ([(list(X), [{"boxes": X}] * 6)], one, "detection"),
    "an image file": ([{"image": "a.png"}], one, "holds str where a tensor of images should be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_batch_is_refused_in_one_line(case):
    data, make, message = REFUSED[case]
    net = Wired(lambda net, x: net.conv(x), conv=nn.Conv2d(4, 2, 3)) if make is one else Two()
    with pytest.raises(InvalidInput, match=message) as error:
        pathex.score(net, "snip", data)
    assert "\n" not in str(error.value)

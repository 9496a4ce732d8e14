"""Weights that `prune` leaves as they are, and targets and weights of other kinds than class numbers and floats."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import pathex
from brute_force.cases import Wired, assert_close
from pathex.errors import InvalidInput, PathexWarning, UnsupportedOperation

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def headed():
    """A network with a head that runs in training only, and one that leads to another output."""

    def forward(net, x):
        z = net.body(x).relu()
        return {"main": net.fc(z), "other": net.other(z), **({"aux": net.aux(z)} if net.training else {})}

    torch.manual_seed(0)
    heads = {"fc": nn.Linear(8, 3), "other": nn.Linear(8, 3), "aux": nn.Linear(8, 3)}
    return Wired(forward, body=nn.Linear(4, 8), **heads)


@pytest.mark.filterwarnings("ignore:all scores are zero")
@pytest.mark.parametrize("method", ["px", "px-cvpr24", "synflow", "snip", "grasp", "ntk-sap", "phew", "node-path"])
def test_heads_that_do_not_run_stay_dense_and_out_of_the_count(method):
    with pytest.warns(PathexWarning) as said:
        result = pathex.prune(headed(), method, sparsity=0.5, data=(X, Y), rounds=2)
    told = [str(warning.message) for warning in said if "are not used by the forward pass" in str(warning.message)]
    assert len(told) == 1 and "aux.weight" in told[0] and "other.weight" in told[0]
    counts = result.mask.counts()
    assert counts["aux.weight"] == counts["other.weight"] == (24, 24)
    assert counts["body.weight"].kept + counts["fc.weight"].kept == 28
    assert sorted(result.report.off_path) == ["aux.weight", "other.weight"] and result.report.dead_layers == []
    again = pathex.prune(headed(), method, sparsity=0.75, data=(X, Y), mask=result.mask, ignore=["aux", "other"]).mask
    assert again.kept == 14
    with pytest.warns(PathexWarning, match="1 weights are not used .*: aux.weight"):
        both = pathex.prune(headed(), method, sparsity=0.5, data=(X, Y), rounds=1, prunable=["other"]).mask
    assert both.kept - 24 == 40


def test_another_output_uses_others():
    with pytest.warns(PathexWarning, match="2 weights are not used .*: fc.weight, aux.weight"):
        scores = pathex.score(headed(), "snip", (X, Y), output="other")
    assert list(scores) == ["body.weight", "other.weight"]


def test_inception_in_evaluation_mode():
    torch.manual_seed(0)
    net = torchvision.models.inception_v3(weights=None, aux_logits=True, init_weights=False, num_classes=4)
    with pytest.warns(PathexWarning, match="are not used .*AuxLogits"):
        mask = pathex.prune(net, "px", sparsity=0.9, data=torch.randn(1, 3, 80, 80), rounds=1).mask
    heads = [count for name, count in mask.counts().items() if name.startswith("AuxLogits")]
    assert heads and all(count.kept == count.total for count in heads)
    rest = mask.total - sum(count.total for count in heads)
    assert mask.kept == round(0.1 * rest) + sum(count.total for count in heads)


def test_frozen_weights_are_left_alone_unless_all_are_or_they_are_asked_for():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    with pytest.warns(PathexWarning, match=r"1 weights are frozen .* left as they are: 0.weight; prunable="):
        left = pathex.prune(net, "px", sparsity=0.5, data=X, rounds=1)
    assert list(left.mask) == ["2.weight"] and left.report.off_path == ["0.weight"]
    assert len(pathex.prune(net, "px", sparsity=0.5, data=X, rounds=1, prunable=["0"]).mask) == 2
    assert len(pathex.prune(net.requires_grad_(False), "px", sparsity=0.5, data=X, rounds=1).mask) == 2


TARGETS = {
    "one logit": (lambda out: out[:, :1], (Y > 0).double()[:, None], "bce", F.binary_cross_entropy_with_logits),
    "one logit, flat labels": (lambda out: out[:, :1], Y > 0, "bce", None),
    "several labels": (lambda out: out, (torch.arange(18).view(6, 3) % 4 == 0).double(), "bce", None),
    "regression": (lambda out: out[:, :1], torch.linspace(-1, 1, 6), "mse", None),
    "several numbers": (lambda out: out, torch.randn(6, 3), "mse", F.mse_loss),
    "as published": (lambda out: out, Y, "cross-entropy", F.cross_entropy),
}


def ended(end):
    torch.manual_seed(0)
    return Wired(lambda net, x: end(net.fc(net.body(x).relu())), body=nn.Linear(4, 8), fc=nn.Linear(8, 3)).double()


@pytest.mark.parametrize("method", ["snip", "grasp", "prospr"])
@pytest.mark.parametrize("case", TARGETS)
def test_losses_by_name(case, method):
    end, labels, name, function = TARGETS[case]
    function = function or {"bce": F.binary_cross_entropy_with_logits, "mse": F.mse_loss}[name]
    net, x = ended(end), X.double()

    def own(out, y):
        return function(out, y if name == "cross-entropy" else y.view_as(out).to(out))

    data = [(x, labels)]
    assert_close(pathex.score(net, method, data, loss=name), pathex.score(net, method, data, loss=own))
    parts = pathex.score(net, method, [(x[:4], labels[:4]), (x[4:], labels[4:])], loss=name, calibration="batch")
    assert_close(parts, pathex.score(net, method, [(x, labels)], loss=name, calibration="batch"))


REFUSED = {
    "one logit": (lambda out: out[:, :1], torch.zeros(6, 1), {}, "two classes or more, not .*loss='bce' is for one"),
    "one logit, class numbers": (lambda out: out[:, :1], Y * 0, {}, "loss='bce'"),
    "several labels": (lambda out: out, torch.ones(6, 3), {}, "not negative and sum to 1 .*loss='bce'"),
    "logits as labels": (lambda out: out, torch.tensor([[2.0, -1, 0]] * 6), {}, "not negative and sum to 1"),
    "numbers": (lambda out: out[:, :2], torch.randn(6), {}, "do not fit .*loss='bce' or 'mse'"),
    "small maps": (lambda out: out[:, :, None, None], torch.zeros(6, 4, 4).long(), {}, "do not fit .*F.interpolate"),
    "bce of class numbers": (lambda out: out, Y, {"loss": "bce"}, r"\(6,\) do not fit outputs \(6, 3\); loss='bce'"),
    "bce of numbers": (lambda out: out[:, :1], torch.randn(6) * 9, {"loss": "bce"}, r"needs labels in \[0, 1\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_targets_that_are_no_classes_name_the_loss(case):
    end, labels, options, message = REFUSED[case]
    with pytest.raises(InvalidInput, match=message) as error:
        pathex.score(ended(end), "snip", [(X.double(), labels)], **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["snip", "fisher-diagonal", "fisher-taylor", "prospr"])
def test_labels_of_no_class_do_not_count(method):
    net, some = ended(lambda out: out), torch.where(Y == 2, -100, Y)
    options = {"steps": 0} if method == "prospr" else {}
    found = pathex.score(net, method, [(X.double(), some)], **options)
    assert_close(found, pathex.score(net, method, [(X[Y != 2].double(), Y[Y != 2])], **options))


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.lora_A, self.lora_B = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(2, 3)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x))


def quantised():
    net = torch.ao.quantization.QuantWrapper(nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
    net.qconfig = torch.ao.quantization.default_qconfig
    prepared = torch.ao.quantization.prepare(net)
    prepared(X)
    return torch.ao.quantization.convert(prepared)


def packed():
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter((layer.weight * 9).to(torch.int8), requires_grad=False)
    return layer


KINDS = {
    "a scripted part": (lambda: torch.jit.script(nn.Linear(4, 3)), r"'1' is TorchScript.*give the network"),
    "an adapter": (Adapted, "'1' is a LoRA adapter: .*merge"),
    "quantised": (quantised, "is quantised .*prune first, then quantise"),
    "integers": (packed, "'1.weight' is torch.int8, and only weights of a floating-point type"),
    "complex": (lambda: nn.Linear(4, 3, dtype=torch.complex64), "'1.weight' is torch.complex64"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*quant")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_plain(kind):
    make, message = KINDS[kind]
    net = nn.Sequential(nn.Linear(4, 4), make())
    with pytest.raises((InvalidInput, UnsupportedOperation), match=message) as error:
        pathex.prune(net, "magnitude", sparsity=0.5, data=X)
    assert "\n" not in str(error.value) and "ignore=" in str(error.value)
    assert list(pathex.masks.prunable_weights(net, ignore=["1*"])) == ["0.weight"]

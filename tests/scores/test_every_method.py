"""What holds for every method: the model comes back, scales of zero are read as one, bad options are named."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pathex
from brute_force.cases import Wired
from pathex.errors import InvalidInput, PathexError, PathexWarning, UnknownName

LOSSES = ["snip", "iterative-snip", "force", "grasp"]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in pathex.methods()} | {
    "ntk-sap exact": ("ntk-sap", {"exact": True}),
    "ntk-sap data": ("ntk-sap", {"inputs": "data"}),
    "ntk-diagonal projected": ("ntk-diagonal", {"projections": 3}),
    "fisher-diagonal projected": ("fisher-diagonal", {"projections": 3}),
    "fisher-diagonal model": ("fisher-diagonal", {"labels": "model"}),
}
RUN_THE_NETWORK = (*LOSSES, "prospr", "ntk-sap", "ntk-diagonal", "fisher-diagonal")


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_comes_back_as_it_was(variant: str) -> None:
    method, options = VARIANTS[variant]
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(36, 3)).train()
    x, y = torch.randn(4, 1, 5, 5), torch.tensor([0, 1, 2, 0])
    model(x).sum().backward()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = None
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    state = {name: entry.clone() for name, entry in model.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    flags = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    result = pathex.prune(model, method, sparsity=0.5, data=(x, y), rounds=2, **options)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(entry, state[name]) for name, entry in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is None if grads[name] is None else torch.equal(parameter.grad, grads[name])
    assert [(module.training, len(module._forward_hooks)) for module in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == needs
    assert result.mask.kept == 72
    assert calls or method not in RUN_THE_NETWORK
    again = pathex.prune(model, method, sparsity=0.5, data=(x, y), rounds=2, **options)
    assert again.mask == result.mask


@pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")
@pytest.mark.parametrize("method", pathex.methods())
def test_the_layout_of_memory_plays_no_part(method: str) -> None:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=4), nn.ReLU(), nn.Conv2d(4, 5, 1)]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).double()
    points = {"linear": nn.Linear(3, 3).double(), "conv": nn.Conv2d(3, 3, 1).double()}
    for name, value in points["linear"].state_dict().items():
        points["conv"].state_dict()[name].copy_(value.view(points["conv"].state_dict()[name].shape))
    plain = Wired(lambda net, x: net.body(net.point(x)), point=points["conv"], body=body)
    turned = {"point": points["linear"], "body": body}
    last = Wired(lambda net, x: net.body(net.point(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), **turned)
    x, y = torch.randn(6, 3, 6, 6, dtype=torch.float64), torch.arange(6) % 3
    expected = pathex.score(plain, method, (x, y))
    for model in (last, plain.to(memory_format=torch.channels_last)):
        found = pathex.score(model, method, (x.contiguous(memory_format=torch.channels_last), y))
        for name, score in expected.items():
            close = {"rtol": 1e-8, "atol": 1e-10 * float(score.abs().max())}
            torch.testing.assert_close(found[name].reshape(score.shape), score, **close)


@pytest.mark.filterwarnings("ignore:all scores are zero:pathex.errors.PathexWarning")
@pytest.mark.parametrize("method", [name for name in pathex.methods() if "scales" in pathex.methods(name).options])
def test_a_scale_of_zero_is_read_as_one_and_told_once(method: str) -> None:
    torch.manual_seed(7)
    parts = {"fc": nn.Linear(3, 3), "gamma": nn.Parameter(torch.zeros(3))}
    block = Wired(lambda net, x: x + net.gamma * net.fc(x).relu(), **parts)
    model = nn.Sequential(block, nn.Linear(3, 2)).double()
    data = (torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2)
    with pytest.warns(PathexWarning, match=r"read as one .*0\.gamma"):
        found = pathex.score(model, method, data)
    with pytest.warns(PathexWarning) as told:
        pathex.prune(model, method, sparsity=0.3, data=data, rounds=2)
    assert len([warning for warning in told if "read as one" in str(warning.message)]) == 1
    if method not in ("phew", "prospr"):  # which rank what no walk uses by magnitude, and train the scale
        assert not pathex.score(model, method, data, scales="stored")["0.fc.weight"].any()
    assert not model[0].gamma.any()
    with torch.no_grad():
        model[0].gamma.fill_(1.0)
    for name, score in pathex.score(model, method, data).items():
        torch.testing.assert_close(found[name], score, rtol=1e-10, atol=1e-12)


X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("method", [*LOSSES, "ntk-sap", "ntk-diagonal", "fisher-diagonal"])
def test_outputs_that_no_class_or_weight_reaches(method: str) -> None:
    def form(net: Wired, x: Tensor) -> dict[str, Tensor]:
        return {"aux": x[:, :2] * 2, "logits": net.fc(x), "flat": net.fc(x).sum(1)}

    model = Wired(form, fc=nn.Linear(3, 2))
    with pytest.raises(InvalidInput, match="depends on no prunable weight; name another output with output="):
        pathex.score(model, method, (X, Y))
    if method in LOSSES:
        with pytest.raises(InvalidInput, match=r"needs outputs \(N, classes, ...\), not \(4,\); pass loss="):
            pathex.score(model, method, (X, Y), output="flat")
    assert pathex.score(model, method, (X, Y), output="logits")["fc.weight"].any()


WALKS = "walks must be an integer of at least 1, or None"
PROJECTIONS = "projections must be None or an integer of at least 0, not"
BAD: list[tuple[str, str, Any, type[PathexError], str]] = [
    *(("grasp", "temperature", value, InvalidInput, "temperature must be a positive number, not")
      for value in (0, -1.0, math.inf, math.nan, "hot", True, None)),
    ("ntk-sap", "inputs", "ones", UnknownName, "unknown inputs 'ones'.*Known: data, normal"),
    *(("ntk-sap", "epsilon", value, InvalidInput, f"epsilon must be a positive number, not {value!r}")
      for value in (0, math.inf, True, "small")),
    ("ntk-sap", "draws", 0, InvalidInput, "draws must be an integer of at least 1, not 0"),
    ("ntk-sap", "calibration", "never", UnknownName, "unknown calibration 'never'"),
    ("ntk-diagonal", "projections", -1, InvalidInput, f"{PROJECTIONS} -1"),
    ("ntk-diagonal", "projections", 2.0, InvalidInput, f"{PROJECTIONS} 2"),
    ("fisher-diagonal", "labels", "true", UnknownName, "unknown labels 'true'.*Known: given, model"),
    ("npb", "alpha", 1.5, InvalidInput, r"alpha must be a number in \[0, 1\], not 1.5"),
    ("npb", "alpha", "much", InvalidInput, "alpha must be a number"),
    ("npb", "beta", -1, InvalidInput, "beta must be a number of at least 0, not -1"),
    ("npb", "beta", math.inf, InvalidInput, "beta must be a number of at least 0"),
    ("npb", "per_sample", "two", UnknownName, "unknown per_sample 'two'"),
    ("phew", "per_sample", "two", UnknownName, r"unknown per_sample 'two'.*one, refuse"),
    *(("phew", "walks", value, InvalidInput, WALKS) for value in (0, -1, 2.5, True)),
    ("prospr", "steps", -1, InvalidInput, "steps must be an integer of at least 0, not -1"),
    ("prospr", "steps", 1.5, InvalidInput, "steps must be an integer"),
    ("prospr", "lr", 0, InvalidInput, "lr must be a positive number, not 0"),
    ("prospr", "lr", math.nan, InvalidInput, "lr must be a positive number"),
    ("prospr", "momentum", 1.0, InvalidInput, r"momentum must be a number in \[0, 1\), not 1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "option", "value", "error", "message"), BAD)
def test_bad_options(method: str, option: str, value: Any, error: type[PathexError], message: str) -> None:
    with pytest.raises(error, match=message):
        pathex.score(nn.Linear(3, 2), method, (X, Y), **{option: value})

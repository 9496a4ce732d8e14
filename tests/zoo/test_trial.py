"""The catalogue holds what it says, and a trial notices everything that must not happen."""

import random
import signal
import time
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

import pathex
from benchmarks.zoo import trial as trial_module
from benchmarks.zoo.catalogue import LEFT_OUT, SEGMENTATION, build, catalogue, describe, first_output
from benchmarks.zoo.table import EXTRA, SIX, plan
from benchmarks.zoo.trial import Outcome, call_of, is_known, trial
from brute_force.cases import Wired
from pathex import scores
from pathex.errors import UnsupportedOperation


def _magnitudes(problem):
    return {name: weight.abs() for name, weight in problem.masked().items()}


@pytest.fixture
def tried(monkeypatch):
    """The outcome of a scorer on a network, by default a small one with a BatchNorm."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    x, y, find = torch.randn(4, 3, 8, 8), torch.arange(4), scores.find

    def run(scorer, name="faulty", model=None):
        class Faulty(type(find("magnitude"))):  # type: ignore[misc]
            def score(self, problem):
                return scorer(problem)

        Faulty.name, method = name, Faulty()
        monkeypatch.setattr(scores, "find", lambda asked: method if asked == name else find(asked))
        return trial(model or small, x, y, name)

    return run


def weight(problem):
    return next(problem.model.parameters())


def replace_parameter(problem):
    problem.model.get_submodule("0").register_parameter("weight", nn.Parameter(weight(problem).detach()))


LEFT, REFUSAL = "Defect: the network was not left as it was: ", UnsupportedOperation("no rule to read this")
NOTHING = lambda problem: None  # noqa: E731
WITH_GRADIENT = lambda problem: setattr(weight(problem), "grad", torch.zeros_like(weight(problem)))  # noqa: E731
INFINITE = lambda p: _magnitudes(p) | {"4.weight": p.masked()["4.weight"] * torch.inf}  # noqa: E731
TRIALS = {
    "sound": (NOTHING, _magnitudes, "ok", ""),
    "weight": (lambda problem: weight(problem).data[0, 0, 0, 0].add_(1), _magnitudes, "error", LEFT + "values"),
    "statistics": (lambda p: p.model.get_buffer("1.running_mean").add_(1), _magnitudes, "error", LEFT + "values"),
    "parameter": (replace_parameter, _magnitudes, "error", LEFT + "parameters"),
    "gradient": (WITH_GRADIENT, _magnitudes, "error", LEFT + "parameters"),
    "flag": (lambda problem: weight(problem).requires_grad_(False), _magnitudes, "error", LEFT + "parameters"),
    "hook": (
        lambda p: p.model.register_load_state_dict_post_hook(lambda *_: None),
        _magnitudes,
        "ok",
        "",
    ),
    "python": (lambda _: random.random(), _magnitudes, "error", LEFT + "generators"),
    "numpy": (lambda _: np.random.random(), _magnitudes, "error", LEFT + "generators"),  # noqa: NPY002
    "mode": (lambda _: torch.set_default_dtype(torch.float64), _magnitudes, "error", LEFT + "modes"),
    "infinite": (NOTHING, INFINITE, "error", "Defect: scores are not finite: 4.weight"),
    "refusal": (NOTHING, Mock(side_effect=REFUSAL), "refused", "no rule to read this"),
    "refusal and gradient": (WITH_GRADIENT, Mock(side_effect=REFUSAL), "error", LEFT + "parameters"),
    "failure": (NOTHING, Mock(side_effect=IndexError("out of bounds")), "error", "IndexError: out of bounds"),
}


@pytest.mark.parametrize("case", TRIALS)
def test_the_outcome_of_a_scorer(case, tried):
    change, score, outcome, message = TRIALS[case]
    try:
        found = tried(lambda problem: (change(problem), score(problem))[1])
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.seconds > 0 or outcome != "ok"
    expected = Outcome("ok", 0, 2) if outcome == "ok" else Outcome(outcome, None, found.layers, message=message)
    assert replace(found, seconds=0) == expected


def test_a_wrong_count_is_an_error_and_dead_layers_where_they_are_promised_not_to_be(tried, monkeypatch):
    def scorer(problem):
        return {name: weight * (name == "4.weight") for name, weight in _magnitudes(problem).items()}

    # Without a kept weight in the first layer no weight of the second is on a path.
    assert tried(scorer).dead == 2
    outcome, lost = tried(scorer, "px"), "0.weight (all scores 0), 4.weight (68 kept)"
    assert outcome.outcome == "error"
    assert outcome.message == f"Defect: 2 of 2 layers lost every weight on every path: {lost}"
    monkeypatch.setattr(trial_module, "SPARSITY", 0.8)
    prune = trial_module.pathex.prune
    monkeypatch.setattr(trial_module.pathex, "prune", lambda *a, **k: prune(*a, **{**k, "sparsity": 0.9}))
    outcome = tried(_magnitudes)
    assert (outcome.outcome, outcome.message) == ("error", "Defect: 68 of 684 weights kept instead of 137")


def test_the_time_limit(tried):
    def stop(*_):
        raise trial_module.TimeLimitError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        outcome = tried(lambda problem: time.sleep(5))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert outcome.outcome == "timeout"
    assert outcome.seconds < 4


def spectral():
    """Eigenvalues have no reading as paths; `spare` does not reach the output."""

    def form(net, x):
        eigenvalues = torch.linalg.eigvalsh(net.first(x.flatten(1)).unflatten(1, (4, 4)))
        net.spare(eigenvalues)
        return net.last(eigenvalues)

    return Wired(form, first=nn.Linear(192, 16), spare=nn.Linear(4, 4), last=nn.Linear(4, 4))


@pytest.mark.parametrize(("emptied", "dead"), [("spare.weight", 0), ("last.weight", 1)])
def test_a_layer_that_no_output_depends_on_is_not_dead(emptied, dead, tried):
    def scorer(problem):
        return {name: weight * (name != emptied) for name, weight in _magnitudes(problem).items()}

    outcome = tried(scorer, model=spectral())
    assert (outcome.outcome, outcome.dead, outcome.layers) == ("ok", dead, 3)
    assert "dead channels and disconnected weights are not counted: no rule to read" in outcome.message


def test_labels():
    assert call_of("px") == ("px", {})
    assert call_of("px:redraw=true,calibration_images=7") == ("px", {"redraw": True, "calibration_images": 7})
    assert is_known("px:redraw=true")
    assert not is_known("px:speed=3")
    assert not is_known("pxx")


LRASPP = f"{SEGMENTATION}lraspp_mobilenet_v3_large"
FAMILIES = {
    *("resnet", "resnext", "res2net", "regnet", "densenet", "vgg", "inception", "mobilenet", "mnasnet"),
    *("efficientnet", "ghostnet", "shufflenet", "rexnet", "hrnet", "dla", "darknet", "nfnet", "convnext"),
    *("convmixer", "mixer", "resmlp", "vit", "deit", "beit", "cait", "swin", "twins", "pit", "levit", "xcit"),
    *("coat", "maxvit", "poolformer", "mobilevit", "efficientformer", "fastvit", "repvgg", "tiny_vit", "eva"),
    "metaformer",
}
BY_MODEL = {architecture.model: architecture for architecture in catalogue()}


def test_every_constructor_and_family_is_in_it_and_thirty_get_every_method():
    assert {architecture.family for architecture in BY_MODEL.values()} >= FAMILIES
    assert sum(model.startswith("timm:") for model in BY_MODEL) >= 120
    for generation in ("mobilenetv1", "mobilenetv2", "mobilenetv3", "mobilenetv4"):
        assert any(model.startswith(f"timm:{generation}") for model in BY_MODEL), generation
    assert len(BY_MODEL) == len(catalogue())
    kinds = [architecture.methods for architecture in BY_MODEL.values()]
    assert set(kinds) == {"all", "six"} and kinds.count("all") == 30
    constructors = {f"torchvision:{name}" for name in models.list_models(module=models)}
    constructors |= {f"{SEGMENTATION}{name}" for name in models.list_models(module=models.segmentation)}
    assert constructors - set(BY_MODEL) == set(LEFT_OUT) & constructors
    assert not set(BY_MODEL) & set(LEFT_OUT)
    assert all(LEFT_OUT.values())


@pytest.mark.parametrize("model", ["timm:test_resnet", "timm:test_vit3", LRASPP])
def test_a_row_is_what_is_measured(model):
    row = BY_MODEL[model]
    found = describe(model, row.family, row.size)
    assert {**found.row(), "methods": row.methods} == row.row()
    network, x, y = build(row)
    assert sum(parameter.numel() for parameter in network.parameters()) == row.parameters
    assert y.shape == x.shape[:1] or y.shape == (4, row.size, row.size)
    assert network.training
    outputs = []
    for seed in (0, 0, 1):
        network, x, _ = build(row, seed)
        outputs.append(first_output(network.eval()(x)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    with pytest.raises(ValueError, match="accepts no image of 384"):
        describe("timm:twelve", "none", 384)


SAMPLE = (
    "torchvision:squeezenet1_1",
    *(f"timm:{n}" for n in ("test_efficientnet", "test_nfnet", "test_vit", "starnet_s050")),
)
WORK_ANYWHERE = frozenset({"random", "magnitude", "snip", "grasp", "ntk-diagonal"})


def _assert_works(architecture, name, rounds, *, may_refuse):
    network, x, y = build(architecture)
    found = trial(network, x, y, name, rounds=rounds)
    assert found.outcome in ({"ok", "refused"} if may_refuse else {"ok"}), f"{name}: {found.message}"


SOME = [(model, name) for model in SAMPLE for name in (*SIX, *EXTRA)]


@pytest.mark.parametrize(("model", "name"), SOME + [(LRASPP, name) for name in ("random", "snip", "px")])
def test_a_sample(model, name):
    rounds = 1 if name in EXTRA or model == LRASPP else 2
    _assert_works(BY_MODEL[model], name, rounds, may_refuse=name == "synflow")


# Of each family the architecture of fewest operations; scripts/zoo.py runs all of them.
SMALLEST = {row.family: row.model for row in sorted(catalogue(), key=lambda row: -row.multiply_adds)}


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALLEST.values())
def test_all_families(model):
    for name, rounds in plan(BY_MODEL[model], pathex.methods()).items():
        _assert_works(BY_MODEL[model], name, rounds, may_refuse=name not in WORK_ANYWHERE)

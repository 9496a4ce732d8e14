"""``rounding="released"``: kept sets of many rounds equal those of the authors' own code, run beside pathex in float64.

Counts and digests below were taken from the code at the commits named, on the network of this file: every weight and
image comes from a NumPy stream that no release changes. Ties do not occur.
"""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pathex
from pathex.errors import InvalidInput
from pathex.experiments.runs import RunConfig, check_config, run_name
from pathex.pruning.schedule import counts


def network(norm: bool = True) -> nn.Sequential:
    """794 weights, with biases, in float64, drawn from one stream."""
    middle = nn.BatchNorm2d(6) if norm else nn.Identity()
    parts = nn.Conv2d(1, 6, 3), middle, nn.ReLU(), nn.Conv2d(6, 10, 3, stride=2), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*parts, nn.Linear(40, 5)).double()
    stream = np.random.RandomState(7)
    for name, parameter in model.named_parameters():
        drawn = torch.from_numpy(stream.standard_normal(parameter.shape)) * 0.3
        if not name.startswith("1."):
            parameter.data.copy_(drawn)
    return model


def batch() -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = np.random.RandomState(8).standard_normal((16, 1, 8, 8))
    return [(torch.from_numpy(images), torch.arange(16) % 5)]


def digest(mask: pathex.Mask) -> str:
    bits = np.concatenate([kept.numpy().ravel() for kept in mask.values()])
    return hashlib.sha256(np.packbits(bits).tobytes()).hexdigest()


UP = [708, 631, 563, 501, 447, 398, 355, 317, 282, 252, 224, 200, 178, 159, 142, 126, 113, 100, 90, 80]
DOWN = [kept - 1 for kept in UP]
# Method, options that leave no other difference, and what the released code kept: the number of each round and the
# SHA-256 of the final set, a bit a weight. NTK-SAP was given the draws of pathex, on a network without BatchNorm.
RELEASED = [
    # ganguli-lab/Synaptic-Flow 9dfa57a
    ("synflow", {"shifts": "released"}, UP, "aa24acbb8f45fb0d58da9035659a0e6f941b0ce23ecbdbc62e3c79a016d54ee6"),
    # iurada/px-ntk-pruning 82ce2bf
    ("px-cvpr24", {"squared_norms": ["1"]}, UP, "ff865d14e065234991a82cbb03213c1b8d658e3768c752a5fc7458b6a09c96c0"),
    # YiteWang/NTK-SAP e23682b
    ("ntk-sap", {}, UP, "50772de5c8555cf3bd359a0ef75b7b46380a80e0772361cc521f0288af1ed630"),
    # naver/force 7494eed
    ("iterative-snip", {"loss": F.nll_loss}, DOWN, "95bb062969565b041894ecd5e60b2d3af6f61dab9c47897e8f65a82bd2e35acd"),
    ("force", {"loss": F.nll_loss}, DOWN, "19b27063166822a23326713389fba734538193cef377b1ed0d10595bf155b1fd"),
]


@pytest.mark.parametrize(("method", "options", "kept", "final"), RELEASED, ids=[case[0] for case in RELEASED])
def test_keeps_the_sets_of_the_released_code(method, options, kept, final):
    how = {"sparsity": 0.9, "data": batch(), "rounds": 20, **options}
    model = network(norm=method != "ntk-sap")
    result = pathex.prune(model, method, rounding="released", **how)
    assert [row["kept"] for row in result.history] == kept
    assert digest(result.mask) == final
    assert result.mask.metadata["rounding"] == "released"
    exact = pathex.prune(model, method, **how)
    assert [row["kept"] for row in exact.history] == [round(794 * 0.1 ** (t / 20)) for t in range(1, 21)]
    assert digest(exact.mask) != final and "rounding" not in exact.mask.metadata


@pytest.mark.parametrize("density", [0.9, 0.7, 0.25, 0.1, 0.06, 0.018, 0.003])
@pytest.mark.parametrize("total", [10, 794, 1000, 270_608])
@pytest.mark.parametrize("rounds", [1, 3, 60, 100])
def test_counts_are_those_of_the_released_formulas(density, total, rounds):
    steps = range(1, rounds + 1)
    asked = total, 1.0, 1 - (1 - density), rounds
    removed = [int((1.0 - density ** (t / rounds)) * total) for t in steps]
    assert counts(*asked, "exponential", "up") == [total - each for each in removed]
    removed = [int((1.0 - (1.0 - (1.0 - density) * (t / rounds))) * total) for t in steps]
    assert counts(*asked, "linear", "up") == [total - each for each in removed]
    kept = [int(total * np.exp(0 - (t * (0 - np.log(density)) / rounds))) for t in steps]
    assert counts(*asked, "exponential", "down") == [max(1, each) for each in kept]
    kept = [int(total * (1 - (t * (1 - density) / rounds))) for t in steps]
    assert counts(*asked, "linear", "down") == [max(1, each) for each in kept]


REFUSED = [
    *(({"method": name}, f"{name}.*allowed: exact") for name in ("px", "snip", "grasp", "magnitude", "random")),
    ({"allocation": "layer"}, "allocation='global', not 'layer'"),
    ({"count": "multiply_adds"}, "count='weights', not 'multiply_adds'"),
    ({"structure": "channels"}, "structure='weights', not 'channels'"),
    ({"schedule": "adaptive:0.1"}, "schedule='exponential' or 'linear', not 'adaptive:0.1'"),
    ({"rounding": "up"}, "unknown rounding 'up'. Known: exact, released"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_refuses_what_the_released_code_does_not_do(changed, message):
    asked = {"method": "synflow", "sparsity": 0.9, "rounding": "released", **changed}
    with pytest.raises(InvalidInput, match=message):
        pathex.prune(network(), data=batch(), **asked)
    with pytest.raises(InvalidInput, match=message):
        check_config(RunConfig(**asked))


def test_runs_know_it_and_a_dense_one_does_not_care():
    check_config(RunConfig(method="force", rounding="released", schedule="linear"))
    assert run_name(RunConfig(method="force", rounding="released")) != run_name(RunConfig(method="force"))
    assert run_name(RunConfig(method="dense", rounding="released")) == run_name(RunConfig(method="dense"))
    with pytest.raises(InvalidInput, match="method 'imp', which has no such rounding"):
        check_config(RunConfig(method="imp", rounding="released"))

import math

import pytest
import torch
from torch import nn

import pathex
from brute_force.cases import perceptron
from pathex.errors import PathexError
from refusals import refused
from snapshots import unchanged

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0, 1])


def spoiled(value):
    x = X.clone()
    x[1, 2] = value
    return x


def scorer(answer):
    return {"method": lambda model, batches, mask: answer}


BOTH = {
    "unknown method": ({"method": "pxx"}, r"unknown method 'pxx'. Did you mean 'px'\? Known: .*random"),
    "method of another type": ({"method": 3}, r"a name or a callable.*not 3"),
    "option": (
        {"calibraton": "batch"},
        r"method 'px': 'calibraton'. Did you mean 'calibration'\? Known: calibration,.*redraw, scales, smooth",
    ),
    "option of another method": (
        {"method": "magnitude", "redraw": True},
        "unknown option of method 'magnitude': 'redraw'. Known: none",
    ),
    "unknown calibration": ({"calibration": "both"}, r"unknown calibration 'both'.*Known: batch, running"),
    "unknown scales": ({"scales": "one"}, "unknown scales 'one'. Known: auto, stored"),
    "unknown shifts": ({"method": "synflow", "shifts": "kept"}, "unknown shifts 'kept'.*dropped, released"),
    "no calibration images": ({"calibration_images": 0}, "at least 1, not 0"),
    "calibration images in words": ({"calibration_images": "all"}, "at least 1, not 'all'"),
    "redraw in words": ({"redraw": "normal"}, "redraw must be True, False or .* not 'normal'"),
    "unknown output": ({"output": 7}, "the network has one output, a tensor; output must be None, not 7"),
    "squared norms": ({"method": "px-cvpr24", "squared_norms": ["bn*"]}, r"'bn\*' matches no normalisation layer"),
    "squared norms of numbers": ({"method": "px-cvpr24", "squared_norms": 2}, "must be globs .* not 2"),
    "memory": ({"memory": "lots"}, "memory must be .* not 'lots'"),
    "seed in words": ({"seed": "one"}, "seed must be an integer of at least 0, got 'one'"),
    "negative seed": ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    "ignore in no form": ({"ignore": None}, "ignore= and prunable= take globs, classes and modules, not None"),
    "prunable in no form": ({"prunable": 3}, "take globs, classes and modules, not 3"),
    "ignore nothing": ({"ignore": ["head"]}, "ignore: 'head' matches no module of Sequential"),
    "ignore everything": ({"ignore": [nn.Linear]}, "Sequential has nothing to prune"),
    "mask of another model": ({"mask": pathex.Mask({"fc": Y > 0})}, "mask does not fit .*0.weight, 2.weight, fc"),
    "mask of another type": ({"mask": {"0.weight": Y > 0}}, r"pathex\.Mask, not dict"),
    "no scores": (scorer(None), "must return a mapping.* not NoneType"),
    "no score of a weight": (scorer({}), "no score for '0.weight'"),
    "a list of scores": (scorer({"0.weight": [1.0]}), "no score for '0.weight'"),
    "scores of another shape": (scorer({"0.weight": torch.zeros(3)}), r"shape \(3,\), not \(4, 3\)"),
    "complex scores": (
        scorer({"0.weight": X + 1j, "2.weight": torch.ones(2, 4)}),
        "'0.weight' is complex; allowed: real",
    ),
    "NaN scores": (scorer({"0.weight": X * torch.nan, "2.weight": torch.ones(2, 4)}), "'0.weight' hold NaN"),
    "empty list": ({"data": []}, "data is empty"),
    "empty tensor": ({"data": X[:0]}, "data is empty"),
    "integers": ({"data": Y[:, None]}, "batch 0 of data has images of torch.int64"),
    "third batch of integers": ({"data": [X, X, Y[:, None]]}, "batch 2 of data has images of torch.int64"),
    "one image without a batch": ({"data": torch.tensor(1.0)}, r"batch 0 of data has shape \(\); images are"),
    "NaN": ({"data": spoiled(math.nan)}, "batch 0 of data holds NaN or infinite"),
    "infinity": ({"data": [(spoiled(math.inf), Y)]}, "batch 0 of data holds NaN or infinite"),
    "labels of another length": ({"data": [(X, Y[:3])]}, "4 images and 3 labels"),
    "labels without length": ({"data": [(X, Y[0])]}, "4 images and no labels"),
    "labels of another type": ({"data": [(X, [0, 1, 0, 1])]}, "has no labels but list"),
    "shapes": ({"data": [X, X[:, :2]]}, r"must have one shape, not \[\(2,\), \(3,\)\]"),
    "string": ({"data": "cifar10"}, "data must be a DataLoader, .* not str"),
    "names that say nothing": (
        {"data": {"a": X, "b": Y}},
        "batch 0 of data is a dictionary of 'a', 'b'; .* with keys=",
    ),
    "a name that is not there": ({"data": {"a": X}, "keys": ("a", "b")}, "of 'a'; keys names 'b', which is not there"),
    "one name for two": ({"data": {"a": X}, "keys": "a"}, "keys must be names of .*, not 'a'"),
    "nothing": ({"data": None}, "data must be a DataLoader, .* not NoneType"),
    "strings inside": ({"data": ["a.png"]}, "batch 0 of data holds str"),
    "arrays": ({"data": [X.numpy()]}, "batch 0 of data holds ndarray"),
}

PRUNE = {
    **{f"sparsity {value!r}": ({"sparsity": value}, r"sparsity must be a fraction in \[0, 1\), not ")
       for value in (1.5, 1, 1.0, -0.1, math.nan, math.inf, "0.5", True, None)},
    "sparsity in percent": ({"sparsity": 98}, r"not 98 \(did you mean 0\.98\?\)"),
    "sparsity that keeps nothing": ({"sparsity": 0.999}, "sparsity 0.999 keeps none of the 20 weights"),
    "no rounds": ({"rounds": 0}, "rounds must be a positive integer, got 0"),
    "half rounds": ({"rounds": 2.5}, "rounds must be a positive integer, got 2.5"),
    "allocation": ({"allocation": "golbal"}, "unknown allocation 'golbal'. Did you mean 'global'.*erk"),
    "allocation of an unknown layer": ({"allocation": {"1.weight": 0.5}}, "'1.weight'.*Known: 0.weight, 2.weight"),
    "allocation in words": ({"allocation": {"0.weight": "half"}}, "'0.weight' density 'half'; allowed: 0 to 1"),
    "limits": ({"allocation": {"0.weight": 1.0}, "sparsity": 0.9}, r"admits sparsity 0\.\d+ to 0\.\d+, not 0\.900000"),
    "effective": ({"budget": "effective", "allocation": "erk"}, "budget='effective' needs allocation='global'"),
    "schedule": ({"schedule": "cosine"}, "unknown schedule 'cosine'. Known: adaptive, exponential, linear"),
    "budget": ({"budget": "real"}, "unknown budget 'real'. Known: effective, nominal"),
    "floor below zero": ({"min_per_layer": -1}, "min_per_layer must be an integer of at least 0, got -1"),
    "floor beside filters": (
        {"structure": "channels", "allocation": {"0.weight": X > 0}}, "needs allocation='global', not a dict"
    ),
    "floor in words": ({"min_per_layer": "2"}, "min_per_layer must be an integer of at least 0, got '2'"),
    "floor too high": ({"min_per_layer": 9, "sparsity": 0.5}, "min_per_layer secures 17 weights but only 10"),
}  # fmt: skip


def assert_refuses(call, arguments, message):
    model = perceptron(3, 4, 2)
    with unchanged(model), refused(message, PathexError):
        call(model, **arguments)


@pytest.mark.parametrize("case", BOTH)
def test_score_and_prune_refuse(case):
    arguments, message = BOTH[case]
    assert_refuses(pathex.score, {"method": "px", "data": X} | arguments, message)
    assert_refuses(pathex.prune, {"sparsity": 0.5, "data": X} | arguments, message)


@pytest.mark.parametrize("case", PRUNE)
def test_prune_refuses(case):
    arguments, message = PRUNE[case]
    assert_refuses(pathex.prune, {"sparsity": 0.5, "data": X} | arguments, message)


@pytest.mark.parametrize("case", ["unknown method", "option", "memory", "seed in words", "ignore nothing"])
def test_arguments_are_checked_before_data_are_read(case):
    def data():
        raise AssertionError("the data were read")
        yield

    arguments, message = BOTH[case]
    assert_refuses(pathex.prune, {"sparsity": 0.5, "data": data()} | arguments, message)


def test_weights_without_values():
    with refused("'0.weight' is on the device 'meta' and has no values", PathexError):
        pathex.score(perceptron(3, 4, 2).to("meta"), "magnitude", X)


@pytest.mark.parametrize("method", ["px", "synflow", "px-literal", "magnitude"])
def test_weights_that_are_not_finite(method):
    model = perceptron(3, 4, 2)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(PathexError, match=r"NaN|nan|leaves float64"):
        pathex.prune(model, method, sparsity=0.5, data=X)

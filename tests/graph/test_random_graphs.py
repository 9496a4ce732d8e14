"""Random networks, float64: the graph is the module, the plain replay its derivative, scores are conserved."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import pathex
from programs import GROUPS, LINEARISED, OPERATORS, Program, assert_computes, assert_linearises, beside, images

places = st.integers(0, 2)
quick = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
# Of smooth units, and of a tiny budget.
pytestmark = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")


@pytest.mark.parametrize("names", [*GROUPS, sorted(OPERATORS.keys() - LINEARISED.keys())])
def test_one_operator_between_layers(names):
    model = beside(names)
    assert_computes(model, images())
    if names in GROUPS:
        assert_linearises(model, images())


def assert_delivery_plays_no_part(model, x):
    whole = pathex.score(model, "px", data=x)
    parts = [x[[4, 0]], x[[5, 3]], x[[1, 2]]]
    for other in (pathex.score(model, "px", data=parts), pathex.score(model, "px", data=x, memory="20KiB")):
        for name, score in whole.items():
            torch.testing.assert_close(other[name], score, rtol=1e-8, atol=1e-14)


@quick
@given(st.lists(st.tuples(st.sampled_from(list(OPERATORS)), places, places), min_size=1, max_size=6))
def test_operators_one_after_another(steps):
    model = Program(steps)
    assert_computes(model, images())
    if {name for name, *_ in steps} <= LINEARISED.keys():
        assert_linearises(model, images())
        assert_delivery_plays_no_part(model, images(6))


WEIGHTED = {"conv", "depthwise", "fully connected"}
PASSED_BY_ALL = [
    *("relu in place", "leaky", "gelu", "silu", "max pool", "mean pool", "rolled alone"),
    *("batch norm", "layer norm", "group norm", *WEIGHTED),
]


@settings(quick, max_examples=6)
@given(st.lists(st.sampled_from(sorted(PASSED_BY_ALL)), min_size=2, max_size=7))
def test_every_layer_of_a_chain_has_the_same_sum(names):
    scores = pathex.score(Program([(name, 0, 0) for name in names]), "px", data=images())
    total = scores["head.weight"].sum()
    for place, name in enumerate(names):
        if name in WEIGHTED:
            torch.testing.assert_close(scores[f"layers.{place}.weight"].sum(), total, rtol=1e-9, atol=0.0)

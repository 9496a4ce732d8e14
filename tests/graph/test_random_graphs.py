"""Random networks, float64: the graph is the module, the plain replay its derivative, scores are conserved."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import pathex
from programs import LINEARISED, OPERATORS, Beside, Program, assert_computes, assert_linearises, images

places = st.integers(0, 2)
linearised = st.lists(st.tuples(st.sampled_from(list(LINEARISED)), places, places), min_size=1, max_size=6)
quick = settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
# Of smooth units, and of a tiny budget.
no_warnings = pytest.mark.filterwarnings("ignore::pathex.errors.PathexWarning")


def test_one_operator_between_layers():
    """Where they differ the second index tells which."""
    model = Beside(LINEARISED)
    assert_linearises(model, images())
    for networks in (model, Beside(OPERATORS.keys() - LINEARISED.keys())):
        assert_computes(networks, images())


@quick
@given(st.lists(st.tuples(st.sampled_from(list(OPERATORS)), places, places), min_size=1, max_size=6))
def test_a_graph_computes_what_its_module_computes(steps):
    assert_computes(Program(steps), images())


@quick
@given(linearised)
def test_a_plain_replay_is_the_derivative(steps):
    assert_linearises(Program(steps), images())


WEIGHTED = {"conv", "depthwise", "fully connected"}
PASSED_BY_ALL = [
    *("relu in place", "leaky", "gelu", "silu", "max pool", "mean pool", "rolled alone"),
    *("batch norm", "layer norm", "group norm", *WEIGHTED),
]


@no_warnings
@settings(quick, max_examples=6)
@given(st.lists(st.sampled_from(sorted(PASSED_BY_ALL)), min_size=2, max_size=7))
def test_every_layer_of_a_chain_has_the_same_sum(names):
    scores = pathex.score(Program([(name, 0, 0) for name in names]), "px", data=images())
    total = scores["head.weight"].sum()
    for place, name in enumerate(names):
        if name in WEIGHTED:
            torch.testing.assert_close(scores[f"layers.{place}.weight"].sum(), total, rtol=1e-9, atol=0.0)


@no_warnings
@settings(quick, max_examples=5)
@given(linearised)
def test_scores_depend_neither_on_the_order_of_images_nor_on_memory(steps):
    model, x = Program(steps), images(6)
    whole = pathex.score(model, "px", data=x)
    parts = [x[[4, 0]], x[[5, 3]], x[[1, 2]]]
    for other in (pathex.score(model, "px", data=parts), pathex.score(model, "px", data=x, memory="20KiB")):
        for name, score in whole.items():
            torch.testing.assert_close(other[name], score, rtol=1e-8, atol=1e-14)

"""Every result draws itself: what the chart holds is what the result says."""

import pytest
import torch
from torch import nn

from drawn import layers
from pathex import ntk

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(20) % 2


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)).double().eval()


def drawn(chart, column):
    """The numbers of a column, and the rows that have them."""
    rows = next(layer.rows for layer in layers(chart) if layer.rows and column in layer.rows[0])
    return torch.tensor([row[column] for row in rows], dtype=torch.float64), rows


@pytest.mark.parametrize("form", ["full", "trace", "classes", "blocks"])
def test_of_kernels(model, form):
    values, _ = drawn(ntk.kernel(model, X, form=form).plot(), "value")
    expected = ntk.kernel(model, X, form="trace").values
    if form == "blocks":  # of one image outputs stand beside each other
        expected = ntk.kernel(model, X, form="blocks").values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(values, expected.abs().flatten())


def test_of_traces(model):
    exact, estimate = (ntk.trace(model, X, method=method, products=30) for method in ("exact", "hutchinson"))
    parts, rows = drawn(exact.plot(), "value")
    assert dict(zip([row["parameter"] for row in rows], parts.tolist(), strict=True)) == exact.by_parameter
    (low,), _ = drawn(estimate.plot(), "low")
    assert float(low) == pytest.approx(estimate.value - 2 * estimate.standard_error)


def test_of_spectra(model):
    exact, density = ntk.spectrum(ntk.kernel(model, X)), ntk.lanczos(model, X, steps=5, repetitions=2)
    values, rows = drawn(exact.plot(), "mean")
    assert [row["rank"] for row in rows] == sorted(row["rank"] for row in rows)
    torch.testing.assert_close(values, exact.values[0].flip(0)[: len(values)])
    torch.testing.assert_close(drawn(density.plot(), "mean")[0], density.density()[1])


def test_of_training_and_of_paths(model):
    both = ntk.linearised(model, (X, Y), steps=3, lr=0.1)
    losses, rows = drawn(both.plot(), "mean")
    assert [row["step"] for row in rows] == [0, 1, 2, 3] * 2
    torch.testing.assert_close(losses, torch.cat([both.network, both.linear]))
    numbers = ntk.path_numbers(model, X)
    kept, rows = drawn(numbers.plot(), "kept")
    assert [row["layer"] for row in rows] == [*numbers.layers]
    assert kept.tolist() == [layer.live for layer in numbers.layers.values()]

import sys

import pytest
import torch

import pathex
from model_factories import small
from pathex.errors import UnknownName
from pathex.experiments.measure import ENGINES, draw, facts, latency, layers
from refusals import refused


@pytest.fixture
def ticket():
    """A network of which a ticket is left, and its mask."""
    torch.manual_seed(0)
    network, images = small(), torch.randn(4, 1, 4, 4)
    mask = pathex.prune(network, "magnitude", sparsity=0.5, data=images).mask
    return pathex.make_permanent(network, mask).eval(), mask


def test_every_engine_has_its_turn_gives_the_outputs_and_is_drawn(ticket, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    turns = []
    images = torch.randn(3, 1, 4, 4)
    engines = ("torch", "torch, channels last", "openvino", "compact")
    rows = latency(ticket[0], images, batch_sizes=(3,), engines=engines, rounds=3, on_turn=lambda: turns.append(1))
    assert [row["engine"] for row in rows] == list(engines) and len(turns) == 9
    for row in rows:
        assert (row["batch_size"], row["threads"]) == (3, 1)
        if row["engine"] == "openvino":
            assert row["note"] == "openvino is not installed" and "milliseconds" not in row
        else:
            assert 0 < row["low"] <= row["milliseconds"] <= row["high"] and row["difference"] < 1e-5
    with refused("unknown engine 'tpu'", UnknownName):
        latency(ticket[0], images, engines=("tpu",))
    row = {"engine": "torch", "threads": 1, "milliseconds": 2.0, "low": 1.0, "high": 3.0}
    rows = [{**row, "batch_size": 1}, {**row, "batch_size": 32, "engine": "sparse"}, {"engine": "openvino"}]
    draw(rows, tmp_path / "p.png", "a network")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_an_engine_that_fails_in_its_own_way_is_left_out(ticket, monkeypatch):
    def broken(subject, images, threads):
        raise ZeroDivisionError("no headers\nof Python")

    measuring = sys.modules["pathex.experiments.measure.latency"]  # whose name the function has
    monkeypatch.setattr(measuring, "ENGINES", {**ENGINES, "openvino": broken})
    rows = latency(ticket[0], torch.randn(1, 1, 4, 4), engines=("torch", "openvino"), rounds=1)
    assert [row["note"] for row in rows] == ["", "ZeroDivisionError: no headers of Python"]
    assert "milliseconds" in rows[0] and "milliseconds" not in rows[1]


def test_facts_are_those_of_the_mask_and_layers_share_the_time_of_a_pass(ticket):
    network, mask = ticket
    found = facts(network, torch.randn(1, 1, 4, 4))
    total = sum(parameter.numel() for parameter in network.parameters())
    assert (found["parameters"], found["kept"]) == (total, total - mask.total + mask.kept)
    counts = pathex.analysis.count(network, (1, 4, 4))
    assert found["multiply_adds"] == counts.multiply_adds()
    assert found["kept_multiply_adds"] == pytest.approx(counts.multiply_adds(mask), abs=len(mask))
    assert 4 * total < found["bytes"] and found["activation_bytes"] >= 4 * 4 * 2 * 2
    rows = layers(network, torch.randn(2, 1, 4, 4), repeats=3)
    assert [row["layer"] for row in rows] == [name for name, _ in network.named_children()]
    assert 0 < sum(row["share"] for row in rows) < 1.5
    assert {row["layer"]: row["kept"] for row in rows if row["weights"]} == {
        name.removesuffix(".weight"): count.kept for name, count in mask.counts().items()
    }
    assert not any(module._forward_hooks for module in network.modules())

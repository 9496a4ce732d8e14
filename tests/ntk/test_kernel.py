"""The exact kernel and its trace against whole Jacobians, and what they tell."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import small_timm
from brute_force import cases, kernels
from brute_force.cases import build, draw, random_mask
from pathex import Mask, ntk
from pathex.errors import MaskMismatch, UnsupportedOperation
from pathex.masks import prunable_weights
from pathex.models import create
from pathex.scores import NtkDiagonal, Problem
from refusals import refused

MODES = {"stored": "running", "calibrated": "batch", "batch": "train"}
NETWORKS = ("mlp", "max-pool", "residual", "depthwise", "transposed", "shared", "vit")
PRECISE = {"rtol": 1e-10, "atol": 0}


def network(name, seed, images=4):
    if name != "vit":
        return build(name, seed, images)
    model = small_timm.vit().double()
    return model, torch.randn(images, 3, 16, 16, generator=draw(model, seed), dtype=torch.float64)


def close(found, expected):
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("masked", [False, True])
def test_both_algorithms_and_the_trace_are_those_of_the_jacobian(name, mode, masked):
    seed = int(torch.randint(1000, ()))
    model, x = network(name, seed)
    mask = random_mask(model, seed + 1, 0.6) if masked else None
    rows = kernels.all_rows(model, x, mask, MODES[mode])
    expected = {
        "full": torch.einsum("akp,blp->akbl", rows, rows).flatten(2).flatten(0, 1),
        "trace": torch.einsum("akp,bkp->ab", rows, rows),
        "classes": torch.einsum("akp,bkp->kab", rows, rows),
        "blocks": torch.einsum("akp,alp->akl", rows, rows),
    }
    # Memory for a few entries of the Jacobian only, where images are not coupled.
    memory = "2GiB" if mode == "batch" else 64 * expected["full"].nbytes
    for form, values in expected.items():
        for method, bound in (("jacobian", None), ("jacobian", memory), ("products", None)):
            found = ntk.kernel(model, x, mask, method, form=form, batch_norm=mode, memory=bound)
            close(found.values, values)
            assert (found.form, found.method, len(found.axes)) == (form, method, values.dim())
    trace = ntk.trace(model, x, mask, batch_norm=mode)
    assert float(trace) == pytest.approx(float(rows.square().sum()), rel=1e-10)
    close(trace.by_class, rows.square().sum((0, 2)).view(len(trace.by_class), -1).sum(1))
    assert len(trace.by_class) == model(x).shape[1]
    parts = rows.square().sum((0, 1)).split([p.numel() for p in model.parameters()])
    assert list(trace.by_parameter) == [n for n, _ in model.named_parameters()]
    found = torch.tensor(list(trace.by_parameter.values()), dtype=torch.float64)
    close(found, torch.stack([part.sum() for part in parts]))


def test_the_default_of_batch_norm_is_that_of_the_mode():
    model, x = build("residual", 3)
    for training, mode in ((True, "batch"), (False, "stored")):
        model.train(training)
        assert ntk.trace(model, x).batch_norm == mode
        assert float(ntk.trace(model, x)) == float(ntk.trace(model, x, batch_norm=mode))


def test_a_kernel_between_two_sets_is_a_part_of_that_of_both():
    model, x = build("residual", 4, images=5)
    mask = random_mask(model, 1)
    for form, place in (("full", (slice(6, 10), slice(6))), ("trace", (slice(3, 5), slice(3)))):
        whole = ntk.kernel(model, x, mask, form=form, batch_norm="stored").values
        for method in ("jacobian", "products"):
            found = ntk.kernel(model, x[:3], mask, method, form=form, other=x[3:], batch_norm="stored")
            close(found.values, whole[place])
    whole = ntk.kernel(model, x, mask, form="classes", batch_norm="stored").values
    for method in ("jacobian", "products"):
        how = {"form": "classes", "other": x[3:], "batch_norm": "stored"}
        close(ntk.kernel(model, x[:3], mask, method, **how).values, whole[:, 3:, :3])


def test_calibration_is_on_the_images_of_the_columns():
    model, x = build("residual", 4, images=6)
    apart = copy.deepcopy(model).eval()
    cases.measure(apart, x[:4])
    expected = ntk.kernel(apart, x, batch_norm="stored").values[8:, :8]
    close(ntk.kernel(model, x[:4], other=x[4:], batch_norm="calibrated").values, expected)


def test_maps_have_a_class_for_each_channel():
    model = nn.Conv2d(2, 3, 3, padding=1).double().eval()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    found = ntk.trace(model, x)
    of_one = nn.functional.unfold(x, 3, padding=1).square().sum() + 2 * 16  # of weights, and of the bias
    torch.testing.assert_close(found.by_class, of_one.expand(3))


def test_the_trace_is_the_sum_of_the_diagonal_scores_over_squared_weights():
    model, x = build("residual", 7)
    mask = random_mask(model, 2)
    weights = prunable_weights(model)
    scores = NtkDiagonal().score(Problem(model, weights, [(x, None)], mask))
    trace = ntk.trace(model, x, mask, batch_norm="calibrated")
    for name, score in scores.items():
        part = (score / weights[name].detach().square())[mask[name]].sum()
        assert trace.by_parameter[name] == pytest.approx(float(part), rel=1e-9)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, image, token):
        return {"sum": self.first(image) * self.second(token), "first": self.first(image)}


def test_several_inputs_and_outputs():
    model = TwoInputs().double().eval()
    image, token = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    for output in ("sum", "first"):
        found = torch.func.jacrev(lambda w, o=output: torch.func.functional_call(model, w, (image, token))[o])(weights)
        rows = torch.cat([each.flatten(2) for each in found.values()], 2).flatten(0, 1)
        for method in ("jacobian", "products"):
            how = {"output": output, "memory": "20kB"}
            close(ntk.kernel(model, {"image": image, "token": token}, None, method, **how).values, rows @ rows.T)


def test_what_does_not_reach_the_output_has_no_part():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "not": nn.Linear(3, 2)}).double().eval()
    model.forward = model["used"].forward
    x = torch.randn(4, 3, dtype=torch.float64)
    parts = ntk.trace(model, x).by_parameter
    assert parts["not.weight"] == 0 < parts["used.weight"]
    close(ntk.kernel(model, x).values, ntk.kernel(model["used"], x).values)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(10**3, 10**5), st.integers(0, 99))
def test_blocks_of_any_width_give_one_kernel(images, outputs, hidden, memory, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double().eval()
        x = torch.randn(images, 3, dtype=torch.float64)
        mask = {"0.weight": torch.rand(hidden, 3) < 0.5}
    whole = ntk.kernel(model, x, mask)
    memory = max(memory, 2 * whole.values.nbytes)
    close(ntk.kernel(model, x, mask, "jacobian", memory=memory).values, whole.values)
    assert whole.trace == pytest.approx(float(ntk.trace(model, x, mask, memory=memory)), rel=1e-10)


def test_float32_agrees_with_float64():
    model = create("resnet20", 3, 1, width=4).eval()
    x = torch.randn(3, 1, 12, 12)
    narrow, wide = (
        ntk.kernel(each, x.to(dtype))
        for each, dtype in ((model, torch.float32), (copy.deepcopy(model).double(), torch.float64))
    )
    assert narrow.values.dtype == torch.float64 and narrow.dtype == torch.float32
    assert ntk.distance(narrow, wide) < 1e-9
    assert narrow.trace == pytest.approx(wide.trace, rel=1e-5)
    assert float(ntk.trace(model, x)) == pytest.approx(wide.trace, rel=1e-5)


@pytest.mark.gpu
def test_a_device_gives_what_the_processor_gives():
    model, x = build("residual", 1)
    mask = random_mask(model, 1)
    moved = copy.deepcopy(model).cuda()
    for mode in MODES:
        for method in ("jacobian", "products"):
            found, expected = (ntk.kernel(m, x, mask, method, batch_norm=mode).values for m in (moved, model))
            close(found, expected)
        found, expected = (float(ntk.trace(m, x, mask, batch_norm=mode)) for m in (moved, model))
        assert found == pytest.approx(expected, rel=1e-10)
    numbers = (ntk.path_numbers(m, x, mask) for m in (moved, model))
    assert next(numbers).bound == pytest.approx(next(numbers).bound, rel=1e-10)


def test_the_model_is_left_as_it_was():
    model, x = build("residual", 1)
    model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for mode in MODES:
        for method in ("jacobian", "products"):
            ntk.kernel(model, x, random_mask(model, 0), method, batch_norm=mode)
    assert model.training and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_alignment_and_distance_by_hand():
    model, x = build("mlp", 2, images=6)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    signs = 1.0 - 2 * y.double()
    found, full = ntk.kernel(model.eval(), x, form="trace"), ntk.kernel(model, x)
    K = found.values
    assert ntk.alignment(found, y) == pytest.approx(float(signs @ K @ signs / (K.norm() * 6)), rel=1e-12)
    vector = torch.stack([signs, -signs], 1).flatten()
    expected = float(vector @ full.values @ vector / (full.values.norm() * 12))
    assert ntk.alignment(full, y) == pytest.approx(expected, rel=1e-12)
    assert ntk.alignment(full, vector.view(6, 2)) == pytest.approx(expected, rel=1e-12)
    three = ntk.kernel(create("resnet20", 3, 1, width=2).double().eval(), torch.randn(6, 1, 8, 8), form="trace")
    coded = torch.full((6, 3), -0.5, dtype=torch.float64)
    coded[range(6), y] = 1
    wanted = coded @ coded.T  # whatever class no label is of
    by_hand = float((three.values * wanted).sum() / (three.values.norm() * wanted.norm()))
    assert ntk.alignment(three, y) == pytest.approx(by_hand, rel=1e-12)
    other = ntk.kernel(model, x, random_mask(model, 1), form="trace")
    by_hand = 1 - float((K * other.values).sum() / (K.norm() * other.values.norm()))
    assert ntk.distance(found, other) == pytest.approx(by_hand, rel=1e-12)
    assert ntk.distance(found, found) == pytest.approx(0, abs=1e-12)


def test_wrong_arguments_are_refused_in_one_line():
    model, x = build("residual", 1)
    with refused("unknown method 'exakt'.*exact, hutch\\+\\+, hutchinson, xtrace"):
        ntk.trace(model, x, method="exakt")
    with refused("unknown method 'exact'.*auto, jacobian, products"):
        ntk.kernel(model, x, method="exact")
    with refused("unknown form 'diag'.*blocks, classes, full, trace"):
        ntk.kernel(model, x, form="diag")
    with refused("unknown batch_norm 'running'.*batch, calibrated, stored"):
        ntk.trace(model, x, batch_norm="running")
    with refused("unknown option 'batchnorm'.*batch_norm, memory, output"):
        ntk.trace(model, x, batchnorm="stored")
    with refused("memory must be a positive number of bytes.*'much'"):
        ntk.trace(model, x, memory="much")
    with refused("full' of 3 images and 2 outputs takes .* MiB.*memory=.*allowed: more memory"):
        ntk.kernel(model, x, memory=100, batch_norm="stored")
    with refused("batch_norm='batch' couples 3 images.*'calibrated'"):
        ntk.trace(model, x, memory=100, batch_norm="batch")
    with refused("batch_norm='batch' couples 1 images.*two images or more"):
        ntk.trace(model, x[:1], batch_norm="batch")
    with refused("batch_norm='batch' couples the images.*stored, calibrated"):
        ntk.kernel(model, x, other=x, batch_norm="batch")
    with refused("form='blocks' is of one set.*full, trace, classes"):
        ntk.kernel(model, x, other=x, form="blocks", batch_norm="stored")
    with refused("the mask does not fit Sequential: 'nowhere' is not there", MaskMismatch):
        ntk.kernel(model, x, Mask({"nowhere": torch.ones(2, dtype=torch.bool)}))
    with refused("'1' stores no statistics; allowed: calibrated, batch"):
        ntk.trace(
            nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)),
            torch.ones(2, 2),
            batch_norm="stored",
        )
    with refused("labels \\(3,\\) of torch.int64; allowed: class numbers \\(N,\\) in 0..1"):
        ntk.alignment(ntk.kernel(model, x), torch.tensor([0, 1, 2]))
    with refused("2 labels do not fit a kernel of \\(6, 6\\)"):
        ntk.alignment(ntk.kernel(model, x), torch.tensor([0, 1]))
    with refused("form 'blocks' is no symmetric matrix; allowed: full or trace"):
        ntk.spectrum(ntk.kernel(model, x, form="blocks"))
    across = ntk.kernel(model, x, other=x, batch_norm="stored")
    with refused("form 'full' is no symmetric matrix; allowed: full or trace, of one set"):
        ntk.spectrum(across)
    with refused("a kernel between two sets of images has no trace"):
        _ = across.trace
    with refused("kernels of forms 'full' \\(6, 6\\) and 'trace' \\(3, 3\\)"):
        ntk.distance(ntk.kernel(model, x), ntk.kernel(model, x, form="trace"))


@pytest.mark.parametrize("mode", MODES)
def test_a_prediction_has_the_passes_and_bytes_of_the_result(mode):
    model, x = build("residual", 1, images=6)
    mask = random_mask(model, 1)
    for method in ("jacobian", "products", "auto"):
        for form in ("full", "blocks"):
            found = ntk.kernel(model, x, mask, method, form=form, batch_norm=mode).cost
            told = ntk.predict(model, x, mask, method, form=form, batch_norm=mode)
            assert (told.passes, told.bytes) == (found.passes, found.bytes) and told.seconds > 0
    found, told = ntk.trace(model, x, mask, batch_norm=mode).cost, ntk.predict(model, x, mask, "exact", batch_norm=mode)
    assert (told.passes, told.bytes) == (found.passes, found.bytes) and told.seconds > 0


def test_the_cheaper_algorithm_is_chosen():
    model = nn.Sequential(nn.Linear(100, 200), nn.Tanh(), nn.Linear(200, 2)).eval()
    x = torch.randn(4, 100)
    assert ntk.kernel(model, x).method == "jacobian"
    # Each of 20,602 parameters by itself: as many passes as there are parameters, or one a column.
    assert ntk.kernel(model, x, memory=4000, form="trace").method == "products"


def test_what_has_no_forward_derivative_is_refused_by_what_needs_one():
    weighed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    model, x = nn.Sequential(weighed, nn.Tanh()).eval(), torch.randn(9, 6)
    assert ntk.kernel(model, x, method="jacobian").values.shape == (27, 27)
    for call in (partial(ntk.kernel, method="products"), partial(ntk.trace, method="hutchinson", products=24)):
        with refused("no forward derivative .*; allowed: 'exact', or 'jacobian' kernels", UnsupportedOperation):
            call(model, x)

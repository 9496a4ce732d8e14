"""Names, cards and options of methods, and methods of other packages."""

import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pathex
from pathex import scores
from pathex.errors import InvalidInput, UnknownName
from pathex.scores import Card, Method, Problem

OUTSIDE = Card("outside", "From outside", *[""] * 3, needs="nothing", batchnorm="", rounds=3, cost="", holds_for="",
               differences="", checked="", options={"power": "exponent"})  # fmt: skip


def _outside(problem: Problem, *, power: float = 1.0) -> dict[str, Tensor]:
    return {name: weight.abs() ** power for name, weight in problem.masked().items()}


METHOD = Method(OUTSIDE, _outside)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package that names two scorers; the second is none."""
    points = [EntryPoint("outside", f"{__name__}:METHOD", "pathex.scorers"),
              EntryPoint("broken", f"{__name__}:OUTSIDE", "pathex.scorers")]  # fmt: skip
    loaded = {"outside": METHOD, "broken": OUTSIDE}
    monkeypatch.setattr(EntryPoint, "load", lambda point: loaded[point.name])
    monkeypatch.setattr(scores, "entry_points", lambda group: points if group == "pathex.scorers" else [])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))


@pytest.mark.parametrize("name", pathex.methods())
def test_cards_are_complete_and_list_every_option(name: str) -> None:
    card = pathex.methods(name)
    assert card.name == name
    assert all(getattr(card, text) for text in inspect.signature(Card).parameters if text != "options")
    assert set(card.options) == set(scores.find(name).defaults)
    assert str(card).startswith(f"{name}: ") and card.citation in str(card)


def test_the_headline_methods_are_there() -> None:
    path_methods = {"px", "px-literal", "px-cvpr24", "synflow", "synflow-l2", "phew", "npb"}
    others = {"snip", "iterative-snip", "force", "grasp", "prospr", "ntk-sap", "ntk-diagonal", "fisher-diagonal"}
    assert path_methods | others | {"magnitude", "random"} <= set(pathex.methods())


@pytest.mark.usefixtures("installed")
def test_methods_of_other_packages() -> None:
    assert pathex.methods()[-2:] == ["broken", "outside"]
    assert pathex.methods("outside") is OUTSIDE
    model, x = network(), torch.randn(2, 3)
    result = pathex.prune(model, "outside", sparsity=0.5, data=x, power=2.0)
    assert len(result.history) == 3 and result.mask.metadata["method"] == "outside"
    assert result.mask == pathex.prune(model, "magnitude", sparsity=0.5, data=x).mask
    with pytest.raises(InvalidInput, match=r"'outside' has no option 'powre'. Known: power"):
        pathex.score(model, "outside", x, powre=2)
    with pytest.raises(InvalidInput, match=r"test_registry:OUTSIDE.*'broken' is not a pathex\.scores\.Method"):
        pathex.score(model, "broken", x)


def by_size(model: nn.Module, batches: Any, mask: Any, *, power: float = 1.0) -> dict[str, Tensor]:
    """A scorer as a plain callable."""
    return {name: model.get_parameter(name).detach().abs() ** power for name in mask}


@pytest.mark.parametrize("method", [METHOD, by_size, f"{__name__}:METHOD", f"{__name__}:by_size"], ids=str)
def test_a_method_may_be_given_instead_of_named(method: Any) -> None:
    model, x = network(), torch.randn(2, 3)
    result = pathex.prune(model, method, sparsity=0.5, data=x, power=2.0)
    assert result.mask == pathex.prune(model, "magnitude", sparsity=0.5, data=x).mask
    assert len(result.history) == (1 if "by_size" in str(method) else 3)
    scores = pathex.score(model, method, x)
    assert all(torch.equal(scores[name], model.get_parameter(name).detach().abs()) for name in scores)


def test_options_that_a_callable_does_not_take() -> None:
    with pytest.raises(InvalidInput, match=r"by_size\(model.*power.*options powre.*'powre'"):
        pathex.prune(network(), by_size, sparsity=0.5, data=torch.randn(2, 3), powre=2.0)
    with pytest.raises(InvalidInput, match="options none"):
        pathex.score(network(), lambda model: {}, torch.randn(2, 3))


def test_cards_of_methods_by_module() -> None:
    assert pathex.methods(f"{__name__}:METHOD") is OUTSIDE
    with pytest.raises(InvalidInput, match="plain callable, which has no card"):
        pathex.methods(f"{__name__}:by_size")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at.all:scorer", "cannot import 'nowhere.at.all'"),
        (f"{__name__}:absent", "has no callable 'absent'"),
        (":scorer", "not of the form package.module:name"),
    ],
)
def test_a_method_that_cannot_be_imported(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"method '{name}'.*{message}"):
        pathex.score(network(), name, torch.randn(2, 3))


def test_every_name_has_its_module_and_is_loaded_on_demand() -> None:
    assert all(scores.find(name).card.name == name for name in scores.names())


def test_unknown_names_get_a_hint() -> None:
    for call in (pathex.methods, lambda name: pathex.score(network(), name, torch.randn(2, 3))):
        with pytest.raises(UnknownName, match=r"unknown method 'synflw'. Did you mean 'synflow'\? Known: .*magnitude"):
            call("synflw")


@pytest.mark.parametrize(
    ("memory", "size"),
    [(None, None), (5, 5), ("200KB", 200_000), (" 1.5 MiB ", 1_572_864), ("2gib", 2**31), ("7", 7), ("1GB", 10**9)],
)
def test_memory_budgets(memory: Any, size: int | None) -> None:
    assert scores.parse_memory(memory) == size


@pytest.mark.parametrize("memory", ["", "much", "-1", "0", 0, "1.2.3GB", "5 parsecs", True, float("inf"), [1]])
def test_bad_memory_budgets(memory: Any) -> None:
    with pytest.raises(InvalidInput, match="memory must be a positive number of bytes or text such as 2GiB"):
        scores.parse_memory(memory)


DATA: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda x, y: x,
    "pair": lambda x, y: (x, y),
    "list of pairs": lambda x, y: [(x[:2], y[:2]), [x[2:], y[2:]]],
    "list of images": lambda x, y: [x[:2], x[2:]],
    "generator": lambda x, y: (part for part in x.split(2)),
    "empty batches among others": lambda x, y: [x[:0], x],
}


@pytest.mark.parametrize("kind", DATA)
def test_forms_of_data(kind: str) -> None:
    x, y = torch.randn(4, 3), torch.arange(4)
    found = scores.read_batches(DATA[kind](x, y))
    assert torch.equal(torch.cat([images for images, _ in found]), x)
    labels = [label for _, label in found if label is not None]
    assert not labels or torch.equal(torch.cat(labels), y)
    assert bool(labels) == ("pair" in kind)


def test_fingerprint_and_images_do_not_depend_on_order() -> None:
    x, model = torch.randn(6, 3), network()
    weights = dict(model.named_parameters())
    problems = [Problem(model, weights, scores.read_batches(data)) for data in (x, x.flip(0), list(x.split(4)))]
    assert len({problem.fingerprint for problem in problems}) == 1
    assert all(torch.equal(problem.images, problems[0].images) for problem in problems)
    assert Problem(model, weights, scores.read_batches(x + 1)).fingerprint != problems[0].fingerprint

"""Names and options of methods, methods as objects, and methods of other packages."""

import inspect
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import pathex
from brute_force.cases import perceptron
from pathex import scores
from pathex.errors import InvalidInput, UnknownName
from pathex.scores import Method, Problem
from refusals import refused

DOCS = Path(__file__).parents[2] / "docs" / "methods"


@dataclass(frozen=True, kw_only=True)
class Outside(Method):
    """A power of the magnitude."""

    name, title, citation, equation, rounds = "outside", "From outside", "nowhere", "S_j = |theta_j|^power", 3

    power: float = 1.0

    def score(self, problem):
        return {name: weight.abs() ** self.power for name, weight in problem.masked().items()}


METHOD = Outside(power=3.0)


@pytest.fixture
def installed(monkeypatch):
    """Another package that names two scorers; the second is none."""
    loaded = {"outside": Outside, "broken": by_size}
    points = [EntryPoint(name, f"{__name__}:{kind.__name__}", "pathex.scorers") for name, kind in loaded.items()]
    monkeypatch.setattr(EntryPoint, "load", lambda point: loaded[point.name])
    monkeypatch.setattr(scores, "entry_points", lambda group: points if group == "pathex.scorers" else [])


def network():
    return perceptron(3, 6, 2)


@pytest.mark.parametrize("name", pathex.methods())
def test_what_is_said_of_a_method(name):
    method = pathex.methods(name)
    assert method.name == name and method == type(method)() and method.changed == {}
    assert all((method.title, method.citation, method.equation, method.needs)) and method.rounds >= 1
    text, page = str(method), (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"{name}: {method.title}") and method.citation in text
    described = "".join(inspect.getdoc(kind) or "" for kind in type(method).__mro__)
    for option, value in method.options.items():
        assert f"{option}={value!r}" in text
        assert re.search(rf"^ +{option}: ", described, re.MULTILINE), option
        assert f"| `{option}` | `{value!r}` |" in page
    assert len(re.findall(r"^\| `", page, re.MULTILINE)) == len(method.options)


def test_methods_as_objects():
    model, x = network(), torch.randn(4, 3)
    by_name = pathex.prune(model, "px", sparsity=0.5, data=x, rounds=2, redraw=True)
    by_object = pathex.prune(model, pathex.PX(redraw=True), sparsity=0.5, data=x, rounds=2)
    assert by_name.mask == by_object.mask and by_name.mask.metadata == by_object.mask.metadata
    assert by_object.mask.metadata["options"] == {"redraw": True}
    for method in ("synflow", pathex.SynFlow(), pathex.SynFlow):
        found = pathex.score(model, method, x)
        assert all(torch.equal(found[name], same) for name, same in pathex.score(model, "synflow", x).items())
    with pytest.raises(InvalidInput, match=r"options redraw beside a method object.*PX\(redraw=\.\.\.\)"):
        pathex.prune(model, pathex.PX(), sparsity=0.5, data=x, redraw=True)
    with pytest.raises(TypeError, match="redrw"):
        pathex.PX(redrw=True)
    with pytest.raises(UnknownName, match=r"unknown scales 'one'. Known: auto, stored"):
        pathex.PX(scales="one")
    assert repr(pathex.Magnitude()) == "Magnitude()"


@pytest.mark.usefixtures("installed")
def test_methods_of_other_packages():
    assert pathex.methods()[-2:] == ["broken", "outside"]
    assert pathex.methods("outside") == Outside()
    model, x = network(), torch.randn(2, 3)
    result = pathex.prune(model, "outside", sparsity=0.5, data=x, power=2.0)
    assert len(result.history) == 3 and result.mask.metadata["method"] == "outside"
    assert result.mask == pathex.prune(model, "magnitude", sparsity=0.5, data=x).mask
    with pytest.raises(InvalidInput, match=r"option of method 'outside': 'powre'. Did you mean 'power'\? Known: power"):
        pathex.score(model, "outside", x, powre=2)
    with pytest.raises(InvalidInput, match=r"test_registry:by_size.*'broken' is not a pathex\.scores\.Method"):
        pathex.score(model, "broken", x)


def by_size(model, batches, mask, *, power=1.0):
    """A scorer as a plain callable."""
    return {name: model.get_parameter(name).detach().abs() ** power for name in mask}


@pytest.mark.parametrize(
    "method",
    [by_size, *(f"{__name__}:{name}" for name in ("METHOD", "Outside", "by_size"))],
    ids=["callable", "object", "class", "name of a callable"],
)
def test_a_method_may_be_given_instead_of_named(method):
    model, x = network(), torch.randn(2, 3)
    result = pathex.prune(model, method, sparsity=0.5, data=x, power=2.0)
    assert result.mask == pathex.prune(model, "magnitude", sparsity=0.5, data=x).mask
    assert len(result.history) == (1 if "by_size" in str(method) else 3)
    if "by_size" not in str(method):
        assert pathex.methods(method) == (METHOD if "METHOD" in method else Outside())
    scores, power = pathex.score(model, method, x), 3.0 if "METHOD" in str(method) else 1.0
    assert all(torch.equal(scores[name], model.get_parameter(name).detach().abs() ** power) for name in scores)


def scored(method, **options):
    return pathex.score(network(), method, torch.randn(2, 3), **options)


def open_ended(model, batches, mask, **options):
    return {name: model.get_parameter(name).abs() ** options["power"] for name in mask}


def test_a_callable_that_takes_any_option_is_given_none_that_prune_takes():
    for name in inspect.signature(pathex.prune).parameters.keys() - {"model", "method", "options", "mask"}:
        with refused(f"options {name} of open_ended"):
            scores.resolve(open_ended, {name: 1, "power": 2})
    assert scored(open_ended, power=2).keys() == network().state_dict().keys() - {"0.bias", "2.bias"}


HINT = r"unknown method 'synflw'. Did you mean 'synflow'\? Known: .*magnitude"
NOWHERE, ABSENT = "nowhere.at.all:scorer", f"{__name__}:absent"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scored(by_size, powre=2.0), r"by_size\(model.*power.*options powre.*'powre'"),
        (lambda: scored(lambda model: {}), "options none"),
        (
            lambda: scored(open_ended, sparsity=0.5, power=2),
            "options sparsity of open_ended have names of pathex.prune's",
        ),
        (lambda: pathex.methods(f"{__name__}:by_size"), "plain callable, of which nothing is known"),
        (lambda: scored(NOWHERE), f"method '{NOWHERE}'.*cannot import 'nowhere.at.all'"),
        (lambda: scored(ABSENT), f"method '{ABSENT}'.*has no callable 'absent'"),
        (lambda: scored(":scorer"), "method ':scorer'.*not of the form package.module:name"),
        (lambda: scored("synflw"), HINT),
        (lambda: scored("PX"), r"unknown method 'PX'. Did you mean 'px'\?"),
        (lambda: pathex.methods("synflw"), HINT),
    ],
)
def test_what_is_no_method_or_takes_no_such_option(call, message):
    with pytest.raises((InvalidInput, UnknownName), match=message):
        call()


SIZES = {None: None, 5: 5, "200KB": 200_000, " 1.5 MiB ": 1_572_864, "2gib": 2**31, "7": 7, "1GB": 10**9}


def test_memory_budgets():
    assert {memory: scores.parse_memory(memory) for memory in SIZES} == SIZES
    for memory in ("", "much", "-1", "0", 0, "1.2.3GB", "5 parsecs", True, float("inf"), [1]):
        with pytest.raises(InvalidInput, match="memory must be a positive number of bytes or text such as 2GiB"):
            scores.parse_memory(memory)


@pytest.mark.parametrize(
    ("deliver", "labelled"),
    [
        (lambda x, y: x, False),
        (lambda x, y: (x, y), True),
        (lambda x, y: [(x[:2], y[:2]), [x[2:], y[2:]]], True),
        (lambda x, y: [x[:2], x[2:]], False),
        (lambda x, y: (part for part in x.split(2)), False),
        (lambda x, y: [x[:0], x], False),
    ],
)
def test_forms_of_data(deliver, labelled):
    x, y = torch.randn(4, 3), torch.arange(4)
    images, labels = zip(*scores.read_batches(deliver(x, y), network()), strict=True)
    assert torch.equal(torch.cat(images), x)
    assert torch.equal(torch.cat(labels), y) if labelled else not any(label is not None for label in labels)


def test_fingerprint_and_images_do_not_depend_on_order():
    x, model = torch.randn(6, 3), network()
    weights = dict(model.named_parameters())
    problems = [Problem(model, weights, scores.read_batches(data, model)) for data in (x, x.flip(0), list(x.split(4)))]
    assert len({problem.fingerprint for problem in problems}) == 1
    assert all(torch.equal(problem.images, problems[0].images) for problem in problems)
    assert Problem(model, weights, scores.read_batches(x + 1, model)).fingerprint != problems[0].fingerprint

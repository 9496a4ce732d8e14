"""One scorer on one network: what came of it, and whether everything that must hold did."""

import hashlib
import pickle
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from torch import Tensor, nn

import pathex
from benchmarks.zoo.catalogue import first_output
from pathex import scores
from pathex.errors import LayerCollapse, PathexWarning, UnsupportedOperation
from pathex.pruning import PruneResult
from pathex.scores import Problem

__all__ = ["Outcome", "TimeLimitError", "call_of", "is_known", "trial"]

SPARSITY = 0.9
_KEEPS_LAYERS = frozenset({"px"})  # what these methods promise: no layer on a path is emptied
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)

_NAMES = re.compile(r"^(read as one because they start at zero) \(.*\): (.*)")


class TimeLimitError(BaseException):
    """The time limit of a row is over; no handler of what a network raises may take it for the network's."""


class _Defect(AssertionError):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Outcome:
    """What came of a scorer on a network.

    Attributes:
        outcome: ``ok``, ``refused`` (an `UnsupportedOperation`), ``timeout`` or ``error`` (a defect).
        dead: Layers on a path that lost every weight on every path; None unless ``ok``.
        layers: Prunable layers; None unless ``ok``.
        seconds: Wall-clock time.
        message: Reason of a refusal or an error; with ``ok`` what the scorer warned of.
    """

    outcome: str
    dead: int | None = None
    layers: int | None = None
    seconds: float = 0.0
    message: str = ""


def call_of(label: str) -> tuple[str, dict[str, Any]]:
    """A method and its options."""
    name, _, text = label.partition(":")
    pairs = (pair.split("=", 1) for pair in text.split(",") if pair)
    return name, {option: yaml.safe_load(value) for option, value in pairs}


def is_known(label: str) -> bool:
    """Whether this version of pathex has a method and its options."""
    name, options = call_of(label)
    return name in pathex.methods() and set(options) <= set(scores.find(name).options)


def trial(model: nn.Module, x: Tensor, y: Tensor, label: str, *, rounds: int = 2) -> Outcome:
    """Prune to 90 % sparsity: finite scores, exact counts, all else as before, no dead layer where a method says so."""
    name, options = call_of(label)
    began = time.perf_counter()
    result: PruneResult | None = None
    try:
        with _warnings() as warned, _unchanged(model), _finite_scores(name) as silent:
            result = pathex.prune(
                model, name, sparsity=SPARSITY, data=[(x, y)], rounds=rounds, progress=False, **options
            )
        dead = _dead_layers(model, x, result)
        _check(name, result, dead, silent)
        outcome = Outcome("ok", len(dead), len(result.mask), message="; ".join(warned))
    except UnsupportedOperation as refusal:
        outcome = Outcome("refused", message=str(refusal))
    except TimeLimitError:
        outcome = Outcome("timeout")
    except Exception as error:  # every other exception of the code under test is a finding, of whatever kind
        outcome = Outcome("error", message=f"{type(error).__name__}: {error}".lstrip("_"))
    return replace(outcome, seconds=time.perf_counter() - began)


def _check(name: str, result: PruneResult, dead: list[str], silent: set[str]) -> None:
    kept, total = result.mask.kept, result.mask.total
    expected = round((1 - SPARSITY) * total)
    if kept != expected or sum(int(entry.count_nonzero()) for entry in result.mask.values()) != expected:
        raise _Defect(f"{kept} of {total} weights kept instead of {expected}")
    if dead and name in _KEEPS_LAYERS:
        counts = result.mask.counts()
        why = {layer: "all scores 0" if layer in silent else f"{counts[layer].kept} kept" for layer in dead}
        named = ", ".join(f"{layer} ({reason})" for layer, reason in why.items())
        raise _Defect(f"{len(dead)} of {len(counts)} layers lost every weight on every path: {named}")


def _dead_layers(model: nn.Module, x: Tensor, result: PruneResult) -> list[str]:
    """The dead layers, without those that the output does not depend on.

    Where paths cannot be read the report calls a layer dead that has no weight, whether it lies on a path or not.
    """
    if result.report.disconnected is not None:
        return result.report.dead_layers
    flags = [(module, module.training) for module in model.modules()]
    parameters = {name: model.get_parameter(name) for name in result.mask}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            total = first_output(model.eval()(x[:1])).sum()
        finally:
            for module, training in flags:
                module.training = training
    grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    used = {name for name, grad in zip(parameters, grads, strict=True) if grad is not None}
    return [name for name in result.report.dead_layers if name in used]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What pathex warned of, each once; layers that died are counted elsewhere, and libraries warn of their own."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    told = (w for w in caught if issubclass(w.category, PathexWarning) and not issubclass(w.category, LayerCollapse))
    texts += dict.fromkeys(_NAMES.sub(_counted, str(warning.message)) for warning in told)


def _counted(names: re.Match[str]) -> str:
    return f"{names[1]}: {names[2].count(',') + 1} parameters"


@contextmanager
def _finite_scores(name: str) -> Iterator[set[str]]:
    """Check what the method returns in each round of `pathex.prune`; collects the layers without any score."""
    method = scores.find(name)
    silent: set[str] = set()

    class Watched(type(method)):  # type: ignore[misc]
        def __call__(self, problem: Problem) -> dict[str, Tensor]:
            found: dict[str, Tensor] = super().__call__(problem)
            wrong = [entry for entry, score in found.items() if not score.isfinite().all()]
            if wrong:
                raise _Defect(f"scores are not finite: {', '.join(wrong)}")
            silent.update(entry for entry, score in found.items() if not score.any())
            return found

    find: Callable[[str], Any] = scores.find
    watched = Watched(**method.options)
    with patch.object(scores, "find", lambda asked: watched if asked == name else find(asked)):
        yield silent


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    before = _state(model)
    try:
        yield
    finally:
        after = _state(model)
        changed = [part for part in before if before[part] != after[part]]
        if changed:
            raise _Defect(f"the network was not left as it was: {', '.join(changed)}")


def _state(model: nn.Module) -> Mapping[str, Any]:
    """Everything about a model and the random generators that scoring could change, cheap to compare."""
    modules, parameters = list(model.modules()), list(model.parameters())
    return {
        "values": {name: _digest(entry) for name, entry in model.state_dict().items() if isinstance(entry, Tensor)},
        "parameters": [(id(p), p.requires_grad, p.grad is None) for p in parameters],
        "flags": [module.training for module in modules],
        "hooks": [len(getattr(module, kind)) for module in modules for kind in _HOOKS],
        "generators": (
            _digest(torch.get_rng_state()),
            random.getstate(),
            pickle.dumps(np.random.get_state()),  # noqa: NPY002  (the generator that others may use)
        ),
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
    }


def _digest(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha1(data.data, usedforsecurity=False).digest()

"""`score` and `prune`: from a model and a few images to a mask."""

import copy
import numbers
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathex import scores as scorers
from pathex.allocate import Allocation, described
from pathex.choosing import Chooser
from pathex.errors import InvalidInput, LayerCollapse, MaskMismatch, PathexWarning, UnsupportedOperation
from pathex.mask_files import read_allocation
from pathex.masks import Mask
from pathex.paths import Connectivity, connectivity, roles, untouched
from pathex.prunable import Selector, own_module, prunable_weights
from pathex.scores import Batch, Problem, parse_memory, read_batches

__all__ = ["PruneReport", "PruneResult", "default_rounds", "prune", "score"]

CustomMethod = scorers.Method | Callable[[nn.Module, list[Batch], Mask], Mapping[str, Tensor]]
OnRound = Callable[[dict[str, Any], Mask], object]


@dataclass(frozen=True)
class PruneReport:
    """What died.

    Attributes:
        dead_layers: Weights of which nothing lies on a path from input to output any more, by name.
        dead_channels: Name to the number of output channels of which no weight lies on a path.
        disconnected: Kept weights on no path; None where the network has operations that paths cannot be read
            through, and then dead layers are those without kept weights.
        unused: Weights that lay on no path before pruning.
    """

    dead_layers: list[str]
    dead_channels: dict[str, int]
    disconnected: int | None
    unused: list[str]

    def asdict(self) -> dict[str, Any]:
        """The report as plain data.

        Returns:
            A dictionary that JSON can hold.
        """
        return asdict(self)


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        mask: The mask.
        history: One row a round: round, rounds, density, kept, emptied (weights without kept entries), seconds.
        report: Dead layers, dead channels, disconnected weights.
    """

    mask: Mask
    history: list[dict[str, Any]]
    report: PruneReport


def default_rounds(method: str | CustomMethod) -> int:
    """Published number of rounds of a method.

    Args:
        method: Name, or a callable (1 round).

    Returns:
        The number.
    """
    found = scorers.resolve(method)
    return found.card.rounds if isinstance(found, scorers.Method) else 1


def score(
    model: nn.Module,
    method: str | CustomMethod,
    data: Any,
    *,
    mask: Mask | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    strict: bool = False,
    ignore: Sequence[Selector] = (),
    prunable: Sequence[Selector] = (),
    **options: Any,
) -> dict[str, Tensor]:
    """Score every prunable weight once.

    Args:
        model: The network, on any device and in any dtype; left exactly as it is.
        method: Name (see `pathex.methods`), a `pathex.scores.Method`, a callable ``(model, batches, mask) -> dict``,
            which gets a copy of the model with the mask applied, or ``package.module:name`` of one.
        data: The pruning set: a DataLoader, an iterable of ``(x, y)`` or ``x``, or one tensor; read once.
        mask: Weights that are there; None is all.
        seed: Seed of whatever the method draws.
        memory: Budget for activations in bytes or as text such as ``2GiB``; results do not depend on it.
        strict: Whether doubts are errors.
        ignore: What is not scored: globs over module or parameter names, classes, modules.
        prunable: What is scored beside convolutions, linear layers and attention projections, likewise.
        **options: Options of the method (see its card).

    Returns:
        Name to score on the model's device, in the weight's shape; higher = keep.

    Raises:
        InvalidInput: If an argument cannot be used or the method returns scores that do not fit.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sorted(score(net, "px", torch.randn(8, 3)))
        ['0.weight', '2.weight']
    """
    method_call = _method_call(method, options)
    seed = _natural("seed", seed)
    model = own_module(model)
    weights = prunable_weights(model, ignore=ignore, prunable=prunable)
    if mask is not None:
        _check_mask(mask, weights)
    problem = Problem(model, weights, read_batches(data), mask, seed=seed, memory=parse_memory(memory), strict=strict)
    return _scored(problem, method_call)


def prune(
    model: nn.Module,
    method: str | CustomMethod = "px",
    *,
    sparsity: float,
    data: Any,
    rounds: int | None = None,
    allocation: Allocation = "global",
    ignore: Sequence[Selector] = (),
    prunable: Sequence[Selector] = (),
    min_per_layer: int = 0,
    mask: Mask | None = None,
    budget: str = "nominal",
    schedule: str = "exponential",
    seed: int = 0,
    memory: int | str | None = None,
    strict: bool = False,
    progress: bool = True,
    on_round: OnRound | None = None,
    **options: Any,
) -> PruneResult:
    """Find the mask of a ticket: rounds of scoring the masked network and keeping the best.

    Args:
        model: The network, on any device and in any dtype; left exactly as it is.
        method: Name (see `pathex.methods`), a `pathex.scores.Method`, a callable ``(model, batches, mask) -> dict``, or
            ``package.module:name`` of one.
        sparsity: Fraction of the prunable weights removed, in [0, 1). Exactly ``round((1 - sparsity) N)`` are kept.
        data: The pruning set: a DataLoader, an iterable of ``(x, y)`` or ``x``, or one tensor; read once.
        rounds: Score-and-keep rounds; None is the method's published number.
        allocation: ``global`` (one threshold), ``layer``, ``uniform``, ``erk``, a mapping from weight names to final
            densities, another mask whose densities are taken in proportion, or a file of either (see
            `pathex.allocate.layer_densities`).
        ignore: What is left dense: globs over module or parameter names, classes, modules.
        prunable: What is pruned beside convolutions, linear layers and attention projections, likewise.
        min_per_layer: Weights that every layer keeps in any case.
        mask: A mask to start from; a weight that it removed never returns.
        budget: ``nominal`` counts kept weights; ``effective`` swaps weights that lie on no path for connected ones.
        schedule: ``exponential`` or ``linear`` fall of density.
        seed: Seed of whatever the method draws and of the order that breaks ties.
        memory: Budget for activations in bytes or as text such as ``2GiB``; results do not depend on it.
        strict: Whether a layer collapse is an error.
        progress: Whether a progress bar is shown on a terminal.
        on_round: Called after each round with the history row and the mask.
        **options: Options of the method (see its card).

    Returns:
        Mask, history and report.

    Raises:
        InvalidInput: If an argument cannot be used.
        LayerCollapse: With ``strict=True``, if a layer lost every weight on every path.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = prune(net, "px", sparsity=0.5, data=torch.randn(8, 3), rounds=5)
        >>> result.mask.kept, result.mask.total
        (10, 20)
    """
    method_call = _method_call(method, options)
    sparsity, seed, memory = _fraction(sparsity), _natural("seed", seed), parse_memory(memory)
    min_per_layer, allocation = _natural("min_per_layer", min_per_layer), read_allocation(allocation)
    model = own_module(model)
    weights = prunable_weights(model, ignore=ignore, prunable=prunable)
    start = Mask({name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()}) if mask is None else mask
    _check_mask(start, weights)
    chooser = Chooser(
        start,
        1 - sparsity,
        default_rounds(method) if rounds is None else rounds,
        allocation=allocation,
        schedule=schedule,
        budget=budget,
        min_per_layer=min_per_layer,
        floor=getattr(scorers.resolve(method), "floor", 0),
        revives=getattr(scorers.resolve(method), "revives", False),
        seed=seed,
        parts=lambda candidate: roles(model, candidate, base.images[:1], output=output),
    )
    steps, output = chooser.densities, options.get("output")
    batches = read_batches(data)
    memo: dict[str, Any] = {}
    base = Problem(model, weights, batches, start, seed, 1, memory, strict, memo)
    current, history = start, []

    def connected(candidate: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return connectivity(model, candidate, base.images[:1], output=output).effective

    with _bar(progress, len(steps)) as advance:
        for number in range(1, len(steps) + 1):
            began = time.perf_counter()
            problem = Problem(model, weights, batches, current, seed, number, memory, strict, memo)
            current = chooser.choose(_scored(problem, method_call), current, number, connected)
            emptied = [name for name, count in current.counts().items() if not count.kept]
            history.append(
                {
                    "round": number,
                    "rounds": len(steps),
                    "density": steps[number - 1],
                    "kept": current.kept,
                    "emptied": emptied,
                    "seconds": time.perf_counter() - began,
                }
            )
            if on_round is not None:
                on_round(history[-1], current)
            advance()
    report = _report(base, start, current, output)
    _collapse(report, strict)
    current = Mask(current, _metadata(method, options, base, sparsity, len(steps), allocation, schedule, budget))
    return PruneResult(current, history, report)


# -- scoring -----------------------------------------------------------------------------------------------------------


def _method_call(method: str | CustomMethod, options: Mapping[str, Any]) -> Callable[[Problem], Mapping[str, Tensor]]:
    """What scores a problem; unknown methods and options are refused here, before anything is computed."""
    found = scorers.resolve(method)
    if isinstance(found, scorers.Method):
        found.check(options)
        return lambda problem: found(problem, **options)
    scorers.check_call(found, options)

    def custom(problem: Problem) -> Mapping[str, Tensor]:
        masked = copy.deepcopy(problem.model)
        with torch.no_grad():
            for name, weight in problem.masked().items():
                masked.get_parameter(name).copy_(weight)
        with torch.enable_grad():
            mask = Mask(problem.mask or {n: torch.ones(w.shape, dtype=torch.bool) for n, w in problem.prunable.items()})
            scores: Mapping[str, Tensor] = found(masked, list(problem.batches), mask, **options)
            return scores

    return custom


def _scored(problem: Problem, method_call: Callable[[Problem], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    with untouched(problem.model):
        result = method_call(problem)
    if not isinstance(result, Mapping):
        raise InvalidInput(f"the method must return a mapping from weight names to scores, not {type(result).__name__}")
    scores = {}
    for name, weight in problem.prunable.items():
        if not isinstance(result.get(name), Tensor):
            raise InvalidInput(f"the method returned no score for {name!r}")
        scores[name] = result[name].detach()
        if scores[name].shape != weight.shape:
            raise InvalidInput(
                f"the method's score of {name!r} has shape {tuple(scores[name].shape)}, not {tuple(weight.shape)}"
            )
        if scores[name].isnan().any():
            raise InvalidInput(f"the scores of {name!r} hold NaN: are weights, statistics and images finite?")
    _doubt_extremes(problem, scores)
    return scores


def _doubt_extremes(problem: Problem, scores: Mapping[str, Tensor]) -> None:
    """Name the weights whose scores say nothing."""
    said: set[str] = problem.memo.setdefault("extremes", set())
    infinite, zero = [], []
    for name, score in scores.items():
        if name in said:
            continue
        if score.isinf().any():
            infinite.append(name)
        elif problem.round == 1 and not score.any() and _is_there(problem, name):
            zero.append(name)
    said.update(infinite, zero)
    if infinite:
        problem.doubt(f"infinite scores (overflow): {_some(infinite)}")
    if zero:
        # Also with strict: what dies of it is a LayerCollapse.
        message = f"all scores are zero (on no path, behind a dead unit, or underflow): {_some(zero)}"
        warnings.warn(message, PathexWarning, stacklevel=3)


def _is_there(problem: Problem, name: str) -> bool:
    return bool(problem.prunable[name].any()) and (problem.mask is None or bool(problem.mask[name].any()))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _check_mask(mask: Mask, weights: Mapping[str, Tensor]) -> None:
    if not isinstance(mask, Mask):
        raise InvalidInput(f"mask must be a pathex.Mask, not {type(mask).__name__}")
    shapes = {name: weight.shape for name, weight in weights.items()}
    found = {name: entry.shape for name, entry in mask.items()}
    if shapes != found:
        wrong = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        raise MaskMismatch(f"the mask does not fit the prunable weights: {', '.join(wrong[:5])}")


def _fraction(sparsity: float) -> float:
    number = isinstance(sparsity, numbers.Real) and not isinstance(sparsity, bool)
    if not number or not 0 <= sparsity < 1:
        hint = f" (did you mean {sparsity / 100:g}?)" if number and 1 < sparsity < 100 else ""
        raise InvalidInput(f"sparsity must be a fraction in [0, 1), not {sparsity!r}{hint}")
    return float(sparsity)


def _natural(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise InvalidInput(f"{name} must be an integer of at least 0, not {value!r}")
    return int(value)


# -- reporting ---------------------------------------------------------------------------------------------------------


def _connected(problem: Problem, mask: Mask, output: str | int | None) -> Connectivity | None:
    with untouched(problem.model):
        try:
            return connectivity(problem.model, mask, problem.images[:1], output=output)
        except UnsupportedOperation as error:
            warnings.warn(
                f"dead channels and disconnected weights are not counted: {error}", PathexWarning, stacklevel=3
            )
            return None


def _report(problem: Problem, start: Mask, mask: Mask, output: str | int | None) -> PruneReport:
    before = _connected(problem, start, output)
    after = None if before is None else _connected(problem, mask, output)
    if before is None or after is None:
        return PruneReport([name for name, count in mask.counts().items() if not count.kept], {}, None, [])
    dead = [name for name in after.dead_layers if name not in before.dead_layers]
    return PruneReport(dead, after.dead_channels, after.disconnected, before.dead_layers)


def _collapse(report: PruneReport, strict: bool) -> None:
    if report.dead_layers:
        message = f"{len(report.dead_layers)} layers lost every weight on every path: {_some(report.dead_layers)}"
        if strict:
            raise LayerCollapse(message)
        warnings.warn(LayerCollapse(message), stacklevel=3)


def _metadata(
    method: str | CustomMethod,
    options: Mapping[str, Any],
    problem: Problem,
    sparsity: float,
    rounds: int,
    allocation: Allocation,
    schedule: str,
    budget: str,
) -> dict[str, Any]:
    return {
        "method": _name_of(method),
        "options": {name: value if _plain(value) else repr(value) for name, value in options.items()},
        "model": type(problem.model).__name__,
        "requested_sparsity": sparsity,
        "rounds": rounds,
        "allocation": described(allocation),
        "schedule": schedule,
        "budget": budget,
        "seed": problem.seed,
        "pruning_set": problem.fingerprint,
    }


def _name_of(method: str | CustomMethod) -> str:
    if isinstance(method, scorers.Method):
        return method.card.name
    return method if isinstance(method, str) else getattr(method, "__name__", "callable")


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))


class _bar:  # noqa: N801  (a context manager used like a function)
    """A progress bar that appears on terminals only and vanishes when done."""

    def __init__(self, wanted: bool, total: int) -> None:
        self.wanted, self.total = wanted and total > 1, total

    def __enter__(self) -> Callable[[], None]:
        if not self.wanted:
            return lambda: None
        state = random.getstate()  # rich draws from the global generator when it is first imported
        from rich.console import Console
        from rich.progress import Progress

        random.setstate(state)
        console = Console(stderr=True)
        self.progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.progress.start()
        task = self.progress.add_task("pruning", total=self.total)
        return lambda: self.progress.advance(task)

    def __exit__(self, *_: object) -> None:
        if self.wanted:
            self.progress.stop()

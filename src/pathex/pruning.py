"""`score` and `prune`: from a model and a few images to a mask."""

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathex import scores as scorers
from pathex.allocate import Allocation, keep_best, keep_best_by_layer, layer_densities, round_to_total
from pathex.errors import InvalidInput, LayerCollapse, MaskMismatch, PathexWarning, UnknownName, UnsupportedOperation
from pathex.masks import Mask
from pathex.paths import Connectivity, connectivity, untouched
from pathex.prunable import Selector, prunable_weights
from pathex.schedule import densities
from pathex.scores import Batch, Problem, parse_memory, read_batches

__all__ = ["BUDGETS", "PruneReport", "PruneResult", "default_rounds", "prune", "score"]

BUDGETS = ("nominal", "effective")

CustomMethod = Callable[[nn.Module, list[Batch], Mask | None], Mapping[str, Tensor]]
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
    return 1 if callable(method) else scorers.find(method).card.rounds


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
        method: Name (see `pathex.methods`), or a callable ``(model, batches, mask) -> dict``, which gets a copy of the
            model with the mask applied.
        data: The pruning set: a DataLoader, an iterable of ``(x, y)`` or ``x``, or one tensor; read once.
        mask: Weights that are there; None is all.
        seed: Seed of whatever the method draws.
        memory: Budget for activations in bytes or as text such as ``2GiB``; results do not depend on it.
        strict: Whether doubts are errors.
        ignore: Modules that are not scored: globs over module or parameter names, classes, modules.
        prunable: Modules that are scored beside convolutions and linear layers.
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
        method: Name (see `pathex.methods`), or a callable ``(model, batches, mask) -> dict``.
        sparsity: Fraction of the prunable weights removed, in [0, 1). Exactly ``round((1 - sparsity) N)`` are kept.
        data: The pruning set: a DataLoader, an iterable of ``(x, y)`` or ``x``, or one tensor; read once.
        rounds: Score-and-keep rounds; None is the method's published number.
        allocation: ``global`` (one threshold), ``layer``, ``uniform``, ``erk`` or a mapping from weight names to final
            densities (see `pathex.allocate.layer_densities`).
        ignore: Modules left dense: globs over module or parameter names, classes, modules.
        prunable: Modules that are pruned beside convolutions and linear layers.
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
        UnknownName: If ``budget`` is not known.
        LayerCollapse: With ``strict=True``, if a layer lost every weight on every path.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = prune(net, "px", sparsity=0.5, data=torch.randn(8, 3), rounds=5)
        >>> result.mask.kept, result.mask.total
        (10, 20)
    """
    method_call = _method_call(method, options)
    _check_sparsity(sparsity)
    if budget not in BUDGETS:
        raise UnknownName("budget", budget, BUDGETS)
    weights = prunable_weights(model, ignore=ignore, prunable=prunable)
    start = Mask({name: torch.ones(w.shape, dtype=torch.bool) for name, w in weights.items()}) if mask is None else mask
    _check_mask(start, weights)
    chooser = _Chooser(model, weights, start, 1 - sparsity, allocation, schedule, min_per_layer, budget, seed)
    steps = chooser.densities(default_rounds(method) if rounds is None else rounds)
    batches = read_batches(data)
    memo: dict[str, Any] = {}
    base = Problem(model, weights, batches, start, seed, 1, parse_memory(memory), strict, memo)
    before = _connected(base, start)
    current, history = start, []
    with _bar(progress, len(steps)) as advance:
        for number in range(1, len(steps) + 1):
            began = time.perf_counter()
            problem = Problem(model, weights, batches, current, seed, number, base.memory, strict, memo)
            current = chooser.choose(_scored(problem, method_call), current, number, problem)
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
    report = _report(base, current, before)
    _collapse(report, strict)
    current = Mask(current, _metadata(method, options, base, sparsity, len(steps), allocation, schedule, budget))
    return PruneResult(current, history, report)


# -- scoring -----------------------------------------------------------------------------------------------------------


def _method_call(method: str | CustomMethod, options: Mapping[str, Any]) -> Callable[[Problem], Mapping[str, Tensor]]:
    """What scores a problem; unknown methods and options are refused here, before anything is computed."""
    if isinstance(method, str):
        found = scorers.find(method)
        found.check(options)
        return lambda problem: found(problem, **options)
    if not callable(method):
        raise InvalidInput(f"method must be a name or a callable (model, batches, mask) -> dict, not {method!r}")

    def custom(problem: Problem) -> Mapping[str, Tensor]:
        masked = copy.deepcopy(problem.model)
        with torch.no_grad():
            for name, weight in problem.masked().items():
                masked.get_parameter(name).copy_(weight)
        with torch.enable_grad():
            mask = None if problem.mask is None else Mask(problem.mask)
            return method(masked, list(problem.batches), mask, **options)

    return custom


def _scored(problem: Problem, method_call: Callable[[Problem], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    with untouched(problem.model):
        result = method_call(problem)
    scores = {}
    for name, weight in problem.prunable.items():
        if name not in result:
            raise InvalidInput(f"the method returned no score for {name!r}")
        scores[name] = result[name].detach()
        if scores[name].shape != weight.shape:
            raise InvalidInput(
                f"the method's score of {name!r} has shape {tuple(scores[name].shape)}, not {tuple(weight.shape)}"
            )
        if scores[name].isnan().any():
            raise InvalidInput(f"the scores of {name!r} hold NaN: are weights, statistics and images finite?")
    return scores


def _check_mask(mask: Mask, weights: Mapping[str, Tensor]) -> None:
    if not isinstance(mask, Mask):
        raise InvalidInput(f"mask must be a pathex.Mask, not {type(mask).__name__}")
    shapes = {name: weight.shape for name, weight in weights.items()}
    found = {name: entry.shape for name, entry in mask.items()}
    if shapes != found:
        wrong = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        raise MaskMismatch(f"the mask does not fit the prunable weights: {', '.join(wrong[:5])}")


def _check_sparsity(sparsity: float) -> None:
    number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not number or not 0 <= sparsity < 1:
        hint = f" (did you mean {sparsity / 100:g}?)" if number and 1 < sparsity < 100 else ""
        raise InvalidInput(f"sparsity must be a fraction in [0, 1), not {sparsity!r}{hint}")


# -- choosing ----------------------------------------------------------------------------------------------------------


@dataclass
class _Chooser:
    """Turns scores into the mask of a round."""

    model: nn.Module
    weights: Mapping[str, Tensor]
    start: Mask
    density: float
    allocation: Allocation
    schedule: str
    min_per_layer: int
    budget: str
    seed: int

    def __post_init__(self) -> None:
        self.total = sum(weight.numel() for weight in self.weights.values())
        self.kept = round(self.density * self.total)
        if self.kept < 1:
            raise InvalidInput(f"sparsity {1 - self.density:g} keeps none of the {self.total} weights")
        if self.min_per_layer < 0:
            raise InvalidInput(f"min_per_layer must not be negative, but is {self.min_per_layer}")
        if self.kept > self.start.kept:
            raise InvalidInput(f"the start mask keeps {self.start.kept} weights, fewer than the {self.kept} asked for")
        self.final: dict[str, float] | None = None
        if self.allocation != "global":
            shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
            start = {name: count.kept for name, count in self.start.counts().items()}
            self.final = layer_densities(self.allocation, self.density, shapes, start)
            if self.budget == "effective":
                raise InvalidInput("budget='effective' needs allocation='global': it moves weights between layers")

    def densities(self, rounds: int) -> list[float]:
        """Density of each round, and of each layer where the allocation is by layer."""
        self.rounds = rounds
        self.steps = densities(self.start.density, self.kept / self.total, rounds, self.schedule)
        if self.final is not None:
            self.layer_steps = {
                name: densities(max(count.kept, 1) / count.total, self.final[name], rounds, self.schedule)
                if 0 < self.final[name] <= count.kept / count.total
                else [count.kept / count.total] * (rounds - 1) + [min(self.final[name], count.kept / count.total)]
                for name, count in self.start.counts().items()
            }
        return self.steps

    def choose(self, scores: Mapping[str, Tensor], current: Mask, number: int, problem: Problem) -> Mask:
        """The mask after a round."""
        seed = int(torch.iinfo(torch.int32).max & hash((self.seed, number)))
        kept = round(self.steps[number - 1] * self.total)
        counts = current.counts()
        if self.final is not None:
            limits = {name: count.kept for name, count in counts.items()}
            shares = {name: self.layer_steps[name][number - 1] * count.total for name, count in counts.items()}
            if number < self.rounds:
                kept = round(sum(shares.values()))
            shares = {n: max(share, min(self.min_per_layer, limits[n])) for n, share in shares.items()}
            return Mask(keep_best_by_layer(scores, current, round_to_total(shares, kept, limits), seed=seed))
        floors = {name: min(self.min_per_layer, count.kept) for name, count in counts.items()}
        if self.budget == "effective":
            return self._effective(scores, current, kept, problem, seed, floors)
        return Mask(keep_best(scores, current, kept, seed=seed, at_least=floors))

    def _effective(
        self,
        scores: Mapping[str, Tensor],
        current: Mask,
        kept: int,
        problem: Problem,
        seed: int,
        floors: Mapping[str, int],
    ) -> Mask:
        """The fewest best weights of which ``kept`` lie on a path; of those that do, the best."""
        low, high = kept, current.kept
        best = current
        while low <= high:
            middle = (low + high) // 2
            candidate = Mask(keep_best(scores, current, middle, seed=seed, at_least=floors))
            connected = Mask(connectivity(self.model, candidate, problem.images[:1]).effective)
            if connected.kept >= kept:
                best, high = connected, middle - 1
            else:
                low = middle + 1
        return Mask(keep_best(scores, best, min(kept, best.kept), seed=seed)) if best.kept >= kept else best


# -- reporting ---------------------------------------------------------------------------------------------------------


def _connected(problem: Problem, mask: Mask) -> Connectivity | None:
    with untouched(problem.model):
        try:
            return connectivity(problem.model, mask, problem.images[:1])
        except UnsupportedOperation as error:
            warnings.warn(
                f"dead channels and disconnected weights are not counted: {error}", PathexWarning, stacklevel=3
            )
            return None


def _report(problem: Problem, mask: Mask, before: Connectivity | None) -> PruneReport:
    after = None if before is None else _connected(problem, mask)
    if before is None or after is None:
        return PruneReport([name for name, count in mask.counts().items() if not count.kept], {}, None, [])
    dead = [name for name in after.dead_layers if name not in before.dead_layers]
    return PruneReport(dead, after.dead_channels, after.disconnected, before.dead_layers)


def _collapse(report: PruneReport, strict: bool) -> None:
    if report.dead_layers:
        more = f" and {len(report.dead_layers) - 4} more" if len(report.dead_layers) > 4 else ""
        named = ", ".join(report.dead_layers[:4]) + more
        message = f"{len(report.dead_layers)} layers lost every weight on every path: {named}"
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
        "method": method if isinstance(method, str) else getattr(method, "__name__", "callable"),
        "options": {name: value if _plain(value) else repr(value) for name, value in options.items()},
        "model": type(problem.model).__name__,
        "requested_sparsity": sparsity,
        "rounds": rounds,
        "allocation": allocation if isinstance(allocation, str) else dict(allocation),
        "schedule": schedule,
        "budget": budget,
        "seed": problem.seed,
        "pruning_set": problem.fingerprint,
    }


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))


class _bar:  # noqa: N801  (a context manager used like a function)
    """A progress bar that appears on terminals only and vanishes when done."""

    def __init__(self, wanted: bool, total: int) -> None:
        self.wanted, self.total = wanted and total > 1, total

    def __enter__(self) -> Callable[[], None]:
        if not self.wanted:
            return lambda: None
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.progress.start()
        task = self.progress.add_task("pruning", total=self.total)
        return lambda: self.progress.advance(task)

    def __exit__(self, *_: object) -> None:
        if self.wanted:
            self.progress.stop()

"""`score` and `prune`: from a model and a few images to a mask."""

import copy
import math
import numbers
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pathex import scores as scorers
from pathex.allocate import Allocation, described
from pathex.choosing import Chooser
from pathex.collapse import PruneReport, examine, listed, warn_of_collapse
from pathex.errors import InvalidInput, MaskMismatch, PathexWarning
from pathex.graph import compute_dtype, trace, untouched
from pathex.heap import keeps_freed_memory
from pathex.mask_files import read_allocation
from pathex.masks import Mask
from pathex.paths import has_empty_units, off_path, on_paths, roles
from pathex.processes import Group, processes_of
from pathex.prunable import Selector, own_module, prunable_weights
from pathex.scores import Batch, Problem, fingerprint, joined, parse_memory, read_batches
from pathex.sharded import is_sharded

__all__ = ["PruneReport", "PruneResult", "default_rounds", "examine", "prune", "score"]

CustomMethod = scorers.Method | type[scorers.Method] | Callable[..., Mapping[str, Tensor]]
OnRound = Callable[[dict[str, Any], Mask], object]


@dataclass(frozen=True)
class PruneResult:
    """What `prune` returns.

    Attributes:
        mask: The mask.
        history: One row a round: round, rounds (planned), reached (planned round at whose density it is), density,
            kept, emptied (weights without kept entries), seconds.
        report: Dead layers, dead channels, disconnected weights.
    """

    mask: Mask
    history: list[dict[str, Any]]
    report: PruneReport


def default_rounds(method: str | CustomMethod) -> int:
    """Published number of rounds of a method.

    Args:
        method: Name, method, or a callable (1 round).

    Returns:
        The number.
    """
    found = scorers.resolve(method)
    return found.rounds if isinstance(found, scorers.Method) else 1


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
    group: Group = "default",
    **options: Any,
) -> dict[str, Tensor]:
    """Score every prunable weight once.

    Args:
        model: The network, on any device and in any dtype; left exactly as it is.
        method: Name (see `pathex.methods`), a `pathex.scores.Method` such as ``pathex.PX(redraw=True)``, a callable
            ``(model, batches, mask) -> dict``, which gets a copy of the model with the mask applied, or
            ``package.module:name`` of one.
        data: The pruning set: a DataLoader, an iterable of ``(x, y)`` or ``x``, or one tensor; read once.
        mask: Weights that are there; None is all.
        seed: Seed of whatever the method draws.
        memory: Budget of scoring in bytes or as text such as ``2GiB``, beside the model; results do not depend on it.
        strict: Whether doubts are errors.
        ignore: What is not scored: globs over module or parameter names, classes, modules.
        prunable: What is scored beside convolutions, linear layers and attention projections, likewise.
        group: The processes that score together, each with the same call: a ``torch.distributed.ProcessGroup``, or
            ``default`` for all of them, if ``torch.distributed`` is initialised. Every one gets what a single process
            would. None: this process does it alone.
        **options: Options of a method that is given by name, or of a callable; a method object has its own.

    Returns:
        Name to score on the model's device, in the weight's shape; higher = keep. Methods that read paths leave out the
        weights that lie on none (see `PruneReport.off_path`).

    Raises:
        InvalidInput: If an argument cannot be used or the method returns scores that do not fit.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sorted(score(net, "px", torch.randn(8, 3)))
        ['0.weight', '2.weight']
    """
    processes = processes_of(group)
    with processes.barrier():
        found = scorers.resolve(method, options)
        options, method_call = _options_of(found, options), _method_call(found, options)
        seed = _natural("seed", seed)
        model, weights = _weights_of(model, ignore, prunable)
        batches = joined(read_batches(data), processes)
        weights, _ = _on_path(model, weights, found, batches, options)
        if mask is not None:
            _check_mask(mask, weights)
        problem = Problem(
            model, weights, batches, mask, seed=seed, memory=parse_memory(memory), strict=strict, processes=processes
        )
        return _scored(_in_agreement(problem, _name_of(method), options, strict=strict), method_call)


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
    group: Group = "default",
    **options: Any,
) -> PruneResult:
    """Find the mask of a ticket: rounds of scoring the masked network and keeping the best.

    Args:
        model: The network, on any device and in any dtype; left exactly as it is.
        method: Name (see `pathex.methods`), a `pathex.scores.Method` such as ``pathex.PX(redraw=True)``, a
            callable ``(model, batches, mask) -> dict``, or ``package.module:name`` of one.
        sparsity: Fraction of the prunable weights removed, in [0, 1). Exactly ``round((1 - sparsity) N)`` are kept.
        data: The pruning set: a DataLoader, an iterable of ``(x, y)`` or ``x``, or one tensor; read once.
        rounds: Score-and-keep rounds, at most; None is the method's published number.
        allocation: ``global`` (one threshold), ``layer``, ``uniform``, ``erk``, a mapping from weight names to final
            densities, another mask whose densities are taken in proportion, or a file of either (see
            `pathex.allocate.layer_densities`).
        ignore: What is left dense: globs over module or parameter names, classes, modules.
        prunable: What is pruned beside convolutions, linear layers and attention projections, likewise.
        min_per_layer: Weights that every layer keeps in any case.
        mask: A mask to start from; a weight that it removed never returns.
        budget: ``nominal`` counts kept weights; ``effective`` swaps weights that lie on no path for connected ones.
        schedule: ``exponential`` or ``linear`` fall of density. ``adaptive`` or ``adaptive:TOLERANCE``: the exponential
            one, where rounds are left out as long as that changes at most this share of the weights kept (see
            `pathex.schedule.next_step`).
        seed: Seed of whatever the method draws and of the order that breaks ties.
        memory: Budget of scoring in bytes or as text such as ``2GiB``, beside the model; results do not depend on it.
        strict: Whether a layer collapse is an error.
        progress: Whether a progress bar is shown on a terminal.
        on_round: Called after each round with the history row and the mask.
        group: The processes that prune together, each with the same call: a ``torch.distributed.ProcessGroup``, or
            ``default`` for all of them, if ``torch.distributed`` is initialised. Every one gets what a single process
            would. None: this process does it alone.
        **options: Options of a method that is given by name, or of a callable; a method object has its own.

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
    processes = processes_of(group)
    with processes.barrier():
        found = scorers.resolve(method, options)
        options, method_call = _options_of(found, options), _method_call(found, options)
        sparsity, seed, memory = _fraction(sparsity), _natural("seed", seed), parse_memory(memory)
        min_per_layer, allocation = _natural("min_per_layer", min_per_layer), read_allocation(allocation)
        model, weights = _weights_of(model, ignore, prunable)
        output = options.get("output")
        batches = joined(read_batches(data), processes)
        weights, unreached = _on_path(model, weights, found, batches, options)
        start = Mask({n: torch.ones(w.shape, dtype=torch.bool) for n, w in weights.items()}) if mask is None else mask
        _check_mask(start, weights)
        chooser = Chooser(
            start,
            1 - sparsity,
            default_rounds(method) if rounds is None else rounds,
            allocation=allocation,
            schedule=schedule,
            budget=budget,
            min_per_layer=min_per_layer,
            floor=getattr(found, "floor", 0),
            revives=getattr(found, "revives", False),
            seed=seed,
            parts=lambda candidate: roles(model, candidate, base.images[:1], output=output),
            may_cut=lambda candidate: has_empty_units(base.graph(output), candidate),
        )
        how: dict[str, Any] = {"sparsity": sparsity, "rounds": len(chooser.densities)}
        how |= {"allocation": described(allocation), "schedule": chooser.schedule, "budget": budget}
        base = _in_agreement(
            Problem(model, weights, batches, start, seed, 1, memory, strict, processes=processes),
            _name_of(method),
            options,
            **how,
            min_per_layer=min_per_layer,
            strict=strict,
        )
        host = memory if base.device.type == "cpu" else None
        with keeps_freed_memory(host), _bar(progress and processes.rank == 0, len(chooser.densities)) as advance:
            mask, history = _rounds(base, method_call, chooser, output, on_round, advance)
        report = examine(model, mask, base.images[:1], start=start, output=output, off_path=unreached)
        warn_of_collapse(report, strict)
        return PruneResult(Mask(mask, _metadata(_name_of(method), options, base, **how)), history, report)


def _rounds(
    base: Problem,
    method_call: Callable[[Problem], Mapping[str, Tensor]],
    chooser: Chooser,
    output: str | int | None,
    on_round: OnRound | None,
    advance: Callable[[int], None],
) -> tuple[Mask, list[dict[str, Any]]]:
    """The mask after all rounds, and the history."""
    history: list[dict[str, Any]] = []
    current, reached = chooser.start, 0

    def connected(candidate: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return on_paths(base.model, candidate, base.images[:1], output=output)

    while reached < chooser.rounds:
        began, number = time.perf_counter(), len(history) + 1
        scores = _scored(replace(base, mask=current, round=number), method_call)
        current = chooser.choose(scores, current, number, connected)
        del scores  # not beside those of the next round
        history.append(
            {
                "round": number,
                "rounds": chooser.rounds,
                "reached": chooser.reached,
                "density": chooser.densities[chooser.reached - 1],
                "kept": current.kept,
                "emptied": [name for name, count in current.counts().items() if not count.kept],
                "seconds": time.perf_counter() - began,
            }
        )
        if on_round is not None:
            on_round(history[-1], current)
        advance(chooser.reached - reached)
        reached = chooser.reached
    return current, history


# -- scoring -----------------------------------------------------------------------------------------------------------


def _options_of(found: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What is not as the method has it by itself."""
    return found.changed if isinstance(found, scorers.Method) else dict(options)


def _method_call(found: Callable[..., Any], options: Mapping[str, Any]) -> Callable[[Problem], Mapping[str, Tensor]]:
    """What scores a problem: a method itself, or a callable with a copy of the masked model."""
    if isinstance(found, scorers.Method):
        return found

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


def _weights_of(
    model: nn.Module, ignore: Sequence[Selector], prunable: Sequence[Selector]
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """The module itself and its prunable weights."""
    model = own_module(model)
    sharded = next((name for name, weight in model.named_parameters() if is_sharded(weight)), None)
    if sharded is not None:
        raise InvalidInput(
            f"{sharded!r} is spread over processes: score the model before fully_shard, and pathex.attach the mask "
            "afterwards"
        )
    return model, prunable_weights(model, ignore=ignore, prunable=prunable)


def _on_path(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    found: Callable[..., Any],
    batches: Sequence[Batch],
    options: Mapping[str, Any],
) -> tuple[Mapping[str, Tensor], list[str]]:
    """For methods that read paths the weights that lie on one, and the names of the others."""
    if not getattr(found, "paths", False):
        return weights, []
    x = batches[0][0].to(next(iter(weights.values())).device, compute_dtype(model))
    off = off_path(trace(model, x, output=options.get("output")), list(weights))
    if off:
        warnings.warn(
            f"{len(off)} weights lie on no path from the images (position biases, constant queries) and are left as "
            f"they are: {listed(off)}; result.report.off_path names them, for ignore= of other methods",
            PathexWarning,
            stacklevel=4,
        )
    return {name: weight for name, weight in weights.items() if name not in off}, off


def _in_agreement(problem: Problem, method: str, options: Mapping[str, Any], **how: object) -> Problem:
    """The problem as all processes have it, who must be about to do the same."""
    processes = problem.processes
    if processes.world_size == 1:
        return problem
    state = {**dict(problem.model.named_parameters()), **dict(problem.model.named_buffers())}
    processes.check_consistent(
        {
            "method": method,
            **{f"option {name!r}": _comparable(value) for name, value in options.items()},
            **{name: repr(value) for name, value in how.items()},
            "seed": problem.seed,
            "the choice of prunable weights": list(problem.prunable),
            "the start mask": None if problem.mask is None else {n: fingerprint(m) for n, m in problem.mask.items()},
            **{f"tensor {name!r}": fingerprint(t) for name, t in state.items()},
        }
    )
    # All cut the images alike: to what fits everywhere.
    return replace(problem, memory=min(processes.all_gather(problem.budget())))


def _comparable(value: Any) -> str:
    """An option as text that is the same in every process; functions by their name, as their address is not."""
    return repr(value) if _plain(value) else getattr(value, "__qualname__", type(value).__name__)


def _scored(problem: Problem, method_call: Callable[[Problem], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    with problem.processes.barrier():
        with untouched(problem.model):
            result = method_call(problem)
        _check_scores(result, problem.prunable)
    # Computed in each process, scores may differ in their last bits on GPUs, or if the method draws unseeded.
    scores = problem.processes.broadcast({name: result[name].detach() for name in problem.prunable}, problem.device)
    # Least and greatest score of each weight, NaN where one is NaN, all brought to the CPU at once.
    extremes = torch.stack([torch.stack(score.aminmax()).double() for score in scores.values()]).tolist()
    for name, (least, _) in zip(scores, extremes, strict=True):
        if math.isnan(least):
            raise InvalidInput(f"the scores of {name!r} hold NaN: are weights, statistics and images finite?")
    _doubt_extremes(problem, dict(zip(scores, extremes, strict=True)))
    return scores


def _check_scores(result: Any, weights: Mapping[str, Tensor]) -> None:
    if not isinstance(result, Mapping):
        raise InvalidInput(f"the method must return a mapping from weight names to scores, not {type(result).__name__}")
    for name, weight in weights.items():
        if not isinstance(result.get(name), Tensor):
            raise InvalidInput(f"the method returned no score for {name!r}")
        if result[name].shape != weight.shape:
            raise InvalidInput(
                f"the method's score of {name!r} has shape {tuple(result[name].shape)}, not {tuple(weight.shape)}"
            )


def _doubt_extremes(problem: Problem, extremes: Mapping[str, Sequence[float]]) -> None:
    """Name the weights whose scores say nothing, from the least and the greatest of each."""
    said: set[str] = problem.memo.setdefault("extremes", set())
    infinite, zero = [], []
    for name, found in extremes.items():
        if name in said:
            continue
        if any(map(math.isinf, found)):
            infinite.append(name)
        elif problem.round == 1 and not any(found) and _is_there(problem, name):
            zero.append(name)
    said.update(infinite, zero)
    if infinite:
        problem.doubt(f"infinite scores (overflow): {listed(infinite)}")
    if zero:
        # Also with strict: what dies of it is a LayerCollapse.
        message = f"all scores are zero (on no path, behind a dead unit, or underflow): {listed(zero)}"
        warnings.warn(message, PathexWarning, stacklevel=3)


def _is_there(problem: Problem, name: str) -> bool:
    return bool(problem.prunable[name].any()) and (problem.mask is None or bool(problem.mask[name].any()))


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


# -- what is written down ----------------------------------------------------------------------------------------------


def _metadata(
    method: str, options: Mapping[str, Any], problem: Problem, *, sparsity: float, **how: Any
) -> dict[str, Any]:
    return {
        "method": method,
        "options": {name: value if _plain(value) else repr(value) for name, value in options.items()},
        "model": type(problem.model).__name__,
        "requested_sparsity": sparsity,
        **how,
        "seed": problem.seed,
        "pruning_set": problem.fingerprint,
    }


def _name_of(method: str | CustomMethod) -> str:
    if isinstance(method, str):
        return method
    found = scorers.resolve(method)
    return found.name if isinstance(found, scorers.Method) else getattr(method, "__name__", "callable")


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))


class _bar:  # noqa: N801  (a context manager used like a function)
    """A progress bar that appears on terminals only and vanishes when done."""

    def __init__(self, wanted: bool, total: int) -> None:
        self.wanted, self.total = wanted and total > 1, total

    def __enter__(self) -> Callable[[int], None]:
        if not self.wanted:
            return lambda rounds: None
        state = random.getstate()  # rich draws from the global generator when it is first imported
        from rich.console import Console
        from rich.progress import Progress

        random.setstate(state)
        console = Console(stderr=True)
        self.progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.progress.start()
        task = self.progress.add_task("pruning", total=self.total)
        return lambda rounds: self.progress.advance(task, rounds)

    def __exit__(self, *_: object) -> None:
        if self.wanted:
            self.progress.stop()

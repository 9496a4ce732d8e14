"""`prune`: rounds of scoring the masked network and keeping the best."""

import contextlib
import numbers
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from pathex import scores as scorers
from pathex.analysis import PruneReport, examine, warn_of_collapse
from pathex.compaction import channel_groups
from pathex.distributed import Group, processes_of
from pathex.errors import InvalidInput, check_name
from pathex.graph import Output, cost, freed_memory_kept
from pathex.masks import Mask, Selector, all_kept, bytes_on_disk
from pathex.paths import OnPaths, has_empty_units, output_places, roles, without_narrow_units
from pathex.pruning.allocation import Allocation, described, read_allocation
from pathex.pruning.checks import check_together, read_checkpoint
from pathex.pruning.floors import Floors
from pathex.pruning.scoring import Call, CustomMethod, agreed, call_of, is_plain, name_of, problem_of, scored
from pathex.pruning.structure import Channels, read_structure
from pathex.pruning.updater import RoundUpdater
from pathex.scores import Keys, Problem

OnRound = Callable[[dict[str, Any], Mask], object]
OnStep = Callable[[int, int], object]
_AGAIN = 2  # times that narrow units are given up


@dataclass(frozen=True, repr=False)
class PruneResult:
    """What `prune` returns.

    Attributes:
        mask: The mask.
        history: One row a round: round, rounds (planned; with ``narrow`` of all three passes), reached (planned round
            at whose density it is), density, kept, emptied (weights without kept entries), seconds.
        report: Dead layers, dead channels, disconnected weights.
    """

    mask: Mask
    history: list[dict[str, Any]]
    report: PruneReport

    def __repr__(self) -> str:
        rounds, dead = len(self.history), len(self.report.dead_layers)
        return f"PruneResult({self.mask!r}, {rounds} round{'s'[: rounds != 1]}, {dead} dead layer{'s'[: dead != 1]})"


def default_rounds(method: str | CustomMethod) -> int:
    """Published number of rounds of a method; 1 of a callable."""
    found = scorers.resolve(method)
    return found.rounds if isinstance(found, scorers.Method) else 1


def prune(
    model: nn.Module,
    method: str | CustomMethod = "px",
    *,
    sparsity: float,
    data: Any,
    keys: Keys = None,
    rounds: int | None = None,
    allocation: Allocation = "global",
    ignore: Sequence[Selector] = (),
    prunable: Sequence[Selector] = (),
    min_per_layer: int = 0,
    min_per_output: int = 0,
    mask: Mask | None = None,
    budget: str = "nominal",
    count: str = "weights",
    schedule: str = "exponential",
    structure: str = "weights",
    narrow: int = 0,
    rounding: str = "exact",
    seed: int = 0,
    memory: int | str | None = None,
    strict: bool = False,
    progress: bool = True,
    on_round: OnRound | None = None,
    on_step: OnStep | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    group: Group = "default",
    **options: Any,
) -> PruneResult:
    """Find the mask of a ticket: rounds of scoring the masked network and keeping the best.

    Args:
        model: The network, on any device and in any dtype; left exactly as it is.
        method: Name (see `pathex.methods`), a `pathex.scores.Method` such as ``pathex.PX(redraw=True)``, a
            callable ``(model, batches, mask) -> dict``, or ``package.module:name`` of one.
        sparsity: Fraction of the prunable weights removed, in [0, 1). Exactly ``round((1 - sparsity) N)`` are kept.
            With ``count="multiply_adds"``: of their multiply-adds for one image.
        data: The pruning set, read once: a DataLoader, an iterable of batches ``(x, y)``, ``x`` or dictionaries, or one
            of them; ``x`` a tensor ``(N, ...)``, or a tuple or dictionary for a network with several inputs.
        keys: Names in dictionaries of what the network gets and of the labels, such as ``("image", "mask")``; None
            finds the names of its arguments, or usual ones.
        rounds: Score-and-keep rounds, at most; None is the method's published number.
        allocation: ``global`` (one threshold), ``layer``, ``uniform``, ``erk``, a mapping from weight names to final
            densities, another mask whose densities are taken in proportion, or a file of either (see
            `pathex.pruning.layer_densities`).
        ignore: What is left dense: globs over module or parameter names, classes, modules.
        prunable: What is pruned beside convolutions, linear layers and attention projections, likewise.
        min_per_layer: Weights that every layer keeps in any case.
        min_per_output: Weights that each output of the network, such as a class, keeps in any case of those that it is
            made of directly. At high sparsity some methods leave outputs without any. It needs ``budget="nominal"``.
        mask: A mask to start from; a weight that it removed never returns.
        budget: ``nominal`` counts kept weights; ``effective`` swaps weights that lie on no path for connected ones.
        count: ``weights``; ``multiply_adds``: as many weights are kept as these allow, exact to one, those of best
            score for each multiply-add that they take part in; ``bytes`` of the smallest file with the kept weights
            (`pathex.masks.bytes_on_disk`), exact to one weight. The last two need ``allocation="global"``.
        schedule: ``exponential`` or ``linear`` fall of density. ``adaptive`` or ``adaptive:TOLERANCE``: the exponential
            one, where rounds are left out as long as that changes at most this share of the weights kept (see
            `pathex.pruning.schedule.next_step`).
        structure: ``weights``: each by itself. ``channels``: filters, attention heads and hidden widths as a whole, by
            the sum of their scores for what they cost; as many as stay within the budget, one of each layer at least.
            `pathex.compact` takes them out. ``N:M``, such as ``2:4``: N of every M weights of neighbouring inputs, in
            layers whose inputs are a multiple of M; sparsity is ``1 - N/M``. Both need a global allocation.
        narrow: Units (filters, hidden units) that the rounds leave with fewer weights than this are given up, and all
            rounds run again on the others, twice; what then is narrow stays, and so do outputs of the network. 0: none
            is given up. It needs ``allocation="global"``.
        rounding: ``exact``: a round keeps ``round(density N)`` weights. ``released``: as many as the code released by
            the method's authors, ``N - int((1 - density) N)`` or ``int(density N)`` (see `Method.rounding`).
        seed: Seed of whatever the method draws and of the order that breaks ties.
        memory: Budget of scoring in bytes or as text such as ``2GiB``, beside the model; results do not depend on it.
        strict: Whether a layer collapse is an error.
        progress: Whether a progress bar is shown on a terminal.
        on_round: Called after each round with the history row and the mask.
        on_step: Called with the steps that are done and all of them, now and then, by methods that search.
        checkpoint: File that a method that searches writes as it goes, and goes on from if it is there.
        group: The processes that prune together, each with the same call: a ``torch.distributed.ProcessGroup``, or
            ``default`` for all of them, if ``torch.distributed`` is initialised. Every one gets what a single process
            would. None: this process does it alone.
        **options: Options of a method that is given by name, or of a callable; a method object has its own.

    Returns:
        Mask, history and report.

    Raises:
        InvalidInput: If an argument cannot be used.
        LayerCollapse: With ``strict=True``, if a layer lost every weight on every path.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = prune(net, "px", sparsity=0.5, data=torch.randn(8, 3), rounds=5)
        >>> result.mask.kept, result.mask.total
        (10, 20)
    """
    processes = processes_of(group)
    with processes.barrier():
        found = scorers.resolve(method, options)
        options, method_call = call_of(found, options)
        sparsity, allocation, output = _fraction(sparsity), read_allocation(allocation), options.get("output")
        given: dict[str, Any] = {"allocation": allocation, "budget": budget, "count": count, "rounds": rounds}
        given |= {"structure": structure, "schedule": schedule, "narrow": narrow, "rounding": rounding}
        given |= {"min_per_layer": min_per_layer, "min_per_output": min_per_output}
        check_together(method, given)
        blocks = read_structure(structure, sparsity)
        path = read_checkpoint(checkpoint, method)
        chosen: dict[str, Any] = {"keys": keys, "ignore": ignore, "prunable": prunable, "seed": seed, "memory": memory}
        chosen |= {"strict": strict, "processes": processes}
        problem, left = problem_of(model, found, options, data, mask, blocks, **chosen)
        start = Mask(all_kept(problem.prunable) if problem.mask is None else problem.mask)
        shape = _channels(problem) if structure == "channels" else blocks
        plan = partial(
            RoundUpdater,
            density=1 - sparsity,
            rounds=default_rounds(method) if rounds is None else rounds,
            allocation=allocation,
            schedule=schedule,
            budget=budget,
            min_per_layer=min_per_layer,
            min_per_output=min_per_output,
            outputs=output_places(problem.graph(output), problem.prunable) if min_per_output else None,
            revives=getattr(found, "revives", False),
            seed=problem.seed,
            floors=None if shape is not None else _floors(problem, found, output),
            costs=_costs(problem, count, output),
            structure=shape,
            size=partial(bytes_on_disk, problem.prunable) if count == "bytes" and shape is None else None,
            rounding=None if rounding == "exact" else getattr(found, "rounding", None),
        )
        updater = plan(start)
        problem = replace(problem, mask=start, checkpoint=path, target=updater.target)
        how: dict[str, Any] = {"sparsity": sparsity, "rounds": len(updater.densities)}
        how |= {"allocation": described(allocation), "schedule": updater.schedule, "budget": budget, "count": count}
        more = {"structure": structure, "narrow": narrow, "rounding": rounding, "min_per_output": min_per_output}
        how |= {name: value for name, value in more.items() if value not in ("weights", 0, "exact")}
        problem = agreed(problem, name_of(method), options, **how, min_per_layer=min_per_layer, strict=strict)
        kept = freed_memory_kept() if memory is None else contextlib.nullcontext()
        with kept, _bar(progress and processes.rank == 0) as show:
            steps = (show,) if on_step is None else (show, on_step)
            problem = replace(problem, on_step=lambda done, total: [tell(done, total) for tell in steps])
            run = partial(_rounds, problem, method_call, output=output, on_round=on_round, show=show)
            mask, history = _passes(run, plan, updater, problem, narrow, output)
        report = examine(problem.model, mask, problem.images[:1], start=start, output=output, off_path=left.names)
        warn_of_collapse(report, strict)
        metadata = _metadata(name_of(method), options, problem, **how)
        return PruneResult(Mask(_with_dense(mask, problem.model, left.dense), metadata), history, report)


def _channels(problem: Problem) -> Channels:
    return Channels(channel_groups(problem.model, problem.images[:1], problem.prunable))


def _with_dense(mask: Mask, model: nn.Module, dense: Sequence[str]) -> dict[str, Tensor]:
    """The entries of a mask and of weights that are left dense, in the order of the parameters."""
    entries = {**mask, **all_kept({name: model.get_parameter(name) for name in dense})}
    return {name: entries[name] for name, _ in model.named_parameters() if name in entries}


def _floors(problem: Problem, found: Any, output: Output) -> Callable[[Mask], Floors] | None:
    """What a method keeps of every layer, if anything, from the mask of what it may keep."""
    if not (share := getattr(found, "floor", 0)):
        return None
    return partial(
        Floors,
        lambda candidate: roles(problem.model, candidate, problem.images[:1], output=output),
        lambda candidate: has_empty_units(problem.graph(output), candidate),
        share,
    )


def _costs(problem: Problem, count: str, output: Output) -> dict[str, int] | None:
    """Multiply-adds of an entry of each weight for one image, where these are counted."""
    check_name("count", count, ("weights", "multiply_adds", "bytes"))
    if count != "multiply_adds":
        return None
    products = cost(problem.graph(output)).products
    return {name: products.get(name, 0) // weight.numel() for name, weight in problem.prunable.items()}


def _passes(
    run: Callable[..., Mask], plan: Callable[[Mask], RoundUpdater], updater: RoundUpdater, problem: Problem,
    narrow: int, output: Output,
) -> tuple[Mask, list[dict[str, Any]]]:  # fmt: skip
    """The mask after all rounds and their history; where narrow units are given up, again without them, twice."""
    history: list[dict[str, Any]] = []
    passes = 1 + (_AGAIN if narrow else 0)
    mask = run(updater, history, passes=passes)
    for number in range(1, passes):
        assert problem.mask is not None
        wide = Mask(without_narrow_units(problem.graph(output), mask, problem.mask, narrow))
        if (left := updater.spent(wide)) < updater.kept:
            asked = f"{updater.counted}, fewer than the {updater.kept} asked for"
            raise InvalidInput(f"narrow={narrow} leaves {left} {asked}; allowed: less")
        mask = run(plan(wide), history, number=number, passes=passes)
    return mask, history


def _rounds(
    base: Problem,
    method_call: Call,
    updater: RoundUpdater,
    history: list[dict[str, Any]],
    *,
    output: Output,
    on_round: OnRound | None,
    show: Callable[[int, int], None],
    number: int = 0,
    passes: int = 1,
) -> Mask:
    """The mask after the rounds of a pass, which are added to the history."""
    before, began_at, total = number * updater.rounds, len(history), passes * updater.rounds
    current = updater.start
    while updater.reached < updater.rounds:
        began, count = time.perf_counter(), len(history) + 1
        scores = scored(replace(base, mask=current, round=count), method_call)
        current = updater.choose(scores, current, count - began_at, OnPaths(base.model, base.images, output=output))
        del scores  # not beside those of the next round
        history.append(
            {
                "round": count,
                "rounds": total,
                "reached": before + updater.reached,
                "density": updater.densities[updater.reached - 1],
                "kept": current.kept,
                "emptied": [name for name, entry in current.counts().items() if not entry.kept],
                "seconds": time.perf_counter() - began,
            }
        )
        if on_round is not None:
            on_round(history[-1], current)
        show(before + updater.reached, total)
    return current


def _fraction(sparsity: float) -> float:
    number = isinstance(sparsity, numbers.Real) and not isinstance(sparsity, bool)
    if not number or not 0 <= sparsity < 1:
        hint = f" (did you mean {sparsity / 100:g}?)" if number and 1 < sparsity < 100 else ""
        raise InvalidInput(f"sparsity must be a fraction in [0, 1), not {sparsity!r}{hint}")
    return float(sparsity)


def _metadata(
    method: str, options: Mapping[str, Any], problem: Problem, *, sparsity: float, **how: Any
) -> dict[str, Any]:
    return {
        "method": method,
        "options": {name: value if is_plain(value) else repr(value) for name, value in options.items()},
        "model": type(problem.model).__name__,
        "requested_sparsity": sparsity,
        **how,
        "seed": problem.seed,
        "pruning_set": problem.fingerprint,
    }


@contextlib.contextmanager
def _bar(wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that appears on terminals only, with the second of several steps, and vanishes when done."""
    if not wanted:
        yield lambda done, total: None
        return
    state = random.getstate()  # rich draws from the global generator when it is first imported
    from rich.console import Console
    from rich.progress import Progress

    random.setstate(state)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pruning", total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=total > 1)

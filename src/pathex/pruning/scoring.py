"""One scoring of a network: what it takes, what must hold of the scores, and `score`."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pathex import scores as scorers
from pathex.distributed import Group, Processes, is_sharded, processes_of
from pathex.errors import InvalidInput, MaskMismatch, PathexWarning, check_integer, listed
from pathex.graph import Images, Inputs, Output, compute_dtype, copied, trace, untouched
from pathex.masks import Mask, Selector, all_kept, asked_for, own_module, prunable_weights
from pathex.paths import off_path, unreached
from pathex.pruning.structure import Blocks
from pathex.scores import Keys, Problem, check_arguments, fingerprint, generator, joined, parse_memory, read_batches

CustomMethod = scorers.Method | type[scorers.Method] | Callable[..., Mapping[str, Tensor]]
"""A method, or ``(model, batches, mask) -> dict`` of scores."""
_FORWARD = 3  # stream of what a forward pass draws, beside those of weights and inputs
Call = Callable[[Problem], Mapping[str, Tensor]]


def score(
    model: nn.Module,
    method: str | CustomMethod,
    data: Any,
    *,
    keys: Keys = None,
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

    Not in several threads at a time: PyTorch's precision and its exporter are those of the process.

    Args:
        model: The network, on any device and in any dtype; left exactly as it is.
        method: Name (see `pathex.methods`), a `pathex.scores.Method` such as ``pathex.PX(redraw=True)``, a callable
            ``(model, batches, mask) -> dict``, which gets a copy of the model with the mask applied, or
            ``package.module:name`` of one.
        data: The pruning set, read once: a DataLoader, an iterable of batches ``(x, y)``, ``x`` or dictionaries, or one
            of them; ``x`` a tensor ``(N, ...)``, or a tuple or dictionary for a network with several inputs.
        keys: Names in dictionaries of what the network gets and of the labels, such as ``("image", "mask")``; None
            finds the names of its arguments, or usual ones.
        mask: Weights that are there; None is all.
        seed: Seed of whatever the method draws.
        memory: Budget of scoring in bytes or as text such as ``2GiB``, beside the model; results do not depend on it.
        strict: Whether doubts are errors.
        ignore: What is not scored: globs over module or parameter names, classes, modules.
        prunable: What is scored beside convolutions, linear layers and attention projections, likewise.
        group: The processes that score together, as in `prune`.
        **options: Options of a method that is given by name, or of a callable; a method object has its own.

    Returns:
        Name to score on the model's device, in the weight's shape; higher = keep. Methods that read paths leave out the
        weights that lie on none (see `PruneReport.off_path`).

    Raises:
        InvalidInput: If an argument cannot be used or the method returns scores that do not fit.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sorted(score(net, "px", torch.randn(8, 3)))
        ['0.weight', '2.weight']
    """
    processes = processes_of(group)
    with processes.barrier():
        found = scorers.resolve(method, options)
        options, method_call = call_of(found, options)
        chosen: dict[str, Any] = {"keys": keys, "ignore": ignore, "prunable": prunable, "seed": seed, "memory": memory}
        problem, _ = problem_of(model, found, options, data, mask, strict=strict, processes=processes, **chosen)
        return scored(agreed(problem, name_of(method), options, strict=strict), method_call)


def call_of(found: Callable[..., Any], options: dict[str, Any]) -> tuple[dict[str, Any], Call]:
    """Options that are not at their defaults, and a method itself, or a callable with a copy of the masked model."""
    if isinstance(found, scorers.Method):
        return found.changed, found

    def custom(problem: Problem) -> Mapping[str, Tensor]:
        masked = copied(problem.model)
        with torch.no_grad():
            for name, weight in problem.masked().items():
                masked.get_parameter(name).copy_(weight)
        mask = Mask(problem.mask or all_kept(problem.prunable))
        batches = [(x.given if isinstance(x, Inputs) else x, y) for x, y in problem.batches]
        scores: Mapping[str, Tensor] = found(masked, batches, mask, **options)
        return scores

    return options, custom


def _refuse_not_finite(model: nn.Module, mask: Mask | None) -> None:
    """Refuse parameters that are not finite where a mask keeps them, and buffers that hold NaN (masks hold -inf)."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InvalidInput(f"{name!r} is on the device 'meta' and has no values: load the weights first")
        if not tensor.is_floating_point() or tensor.detach().sum().isfinite():
            continue
        wrong = ~tensor.detach().isfinite() if isinstance(tensor, nn.Parameter) else tensor.isnan()
        if isinstance(mask, Mask) and name in mask and mask[name].shape == wrong.shape:
            wrong = wrong & mask[name].to(wrong.device)
        if wrong.any():
            raise InvalidInput(f"{name!r} holds NaN or infinite values")


class Left(NamedTuple):
    """Names of prunable weights that are not scored: those that stay in the mask, dense, and those that do not."""

    dense: list[str]
    out: list[str]

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.dense, *self.out]


def problem_of(
    model: nn.Module,
    found: Callable[..., Any],
    options: Mapping[str, Any],
    data: Any,
    mask: Mask | None,
    blocks: Blocks | None = None,
    *,
    keys: Keys,
    ignore: Sequence[Selector],
    prunable: Sequence[Selector],
    seed: int,
    memory: int | str | None,
    strict: bool,
    processes: Processes,
) -> tuple[Problem, Left]:
    """What a method is to score, and the names of prunable weights that are left as they are."""
    seed, budget, model = check_integer("seed", seed, 0), parse_memory(memory), own_module(model)
    sharded = next((name for name, weight in model.named_parameters() if is_sharded(weight)), None)
    if sharded is not None:
        raise InvalidInput(
            f"{sharded!r} is spread over processes: score the model before fully_shard, and pathex.attach the mask "
            "afterwards"
        )
    weights = prunable_weights(model, ignore=ignore, prunable=prunable)
    if blocks is not None:
        weights = blocks.fitting(model, weights)
    _refuse_not_finite(model, mask)
    batches = joined(read_batches(data, model, keys), processes)
    left = _left_as_they_are(model, found, options.get("output"), batches[0][0], weights, asked_for(model, prunable))
    weights = {name: weight for name, weight in weights.items() if name not in left.dense and name not in left.out}
    if mask is not None:
        mask = _fitting(mask, weights, [*left.dense, *left.out])
    return Problem(model, weights, batches, mask, seed, 1, budget, strict, processes=processes), left


def _left_as_they_are(
    model: nn.Module, found: Any, output: Output, x: Images, weights: Mapping[str, Tensor], asked: set[str]
) -> Left:
    """Which weights cannot be scored by what they do, or are frozen, unless the user asked for them; says so once."""
    names = [name for name in weights if name not in asked]
    frozen = [name for name in names if not weights[name].requires_grad]
    frozen = frozen if len(frozen) < len(weights) else []
    names = [name for name in names if name not in frozen]
    idle, off = [], []
    if isinstance(found, scorers.Method) and found.runs_network:
        check_arguments(model, x)
        with untouched(model):
            x = x.to(next(iter(weights.values())).device, compute_dtype(model))
            if found.paths:
                used = trace(model, x, output=output).used
                idle, off = [name for name in names if name not in used], off_path(model, names, x, output=output)
            else:
                idle = unreached(model, names, x[:1], output=output)
    if len({*frozen, *idle, *off}) == len(weights):
        raise InvalidInput("the output that counts depends on no prunable weight; name another output with output=")
    for why, left in (
        ("are frozen (requires_grad=False)", frozen),
        ("are not used by the forward pass in evaluation mode (heads of training only)", idle),
        ("lie on no path from the images to the output (position biases, constant queries)", off),
    ):
        if left:
            warnings.warn(
                f"{len(left)} weights {why} and are left as they are: {listed(left)}; prunable= has them pruned, "
                "output= names another output, ignore= silences this; result.report.off_path has their names",
                PathexWarning,
                stacklevel=4,
            )
    return Left(idle, [*frozen, *off])


def agreed(problem: Problem, method: str, options: Mapping[str, Any], **how: object) -> Problem:
    """The problem as all processes have it, who must be about to do the same."""
    processes = problem.processes
    if processes.world_size == 1:
        return problem
    state = {**dict(problem.model.named_parameters()), **dict(problem.model.named_buffers())}
    # Functions are compared by their names: their addresses are not the same in all processes.
    names = {n: o if is_plain(o) else getattr(o, "__qualname__", type(o).__name__) for n, o in options.items()}
    processes.check_consistent(
        {
            "method": method,
            **{f"option {name!r}": repr(value) for name, value in names.items()},
            **{name: repr(value) for name, value in how.items()},
            "seed": problem.seed,
            "the choice of prunable weights": list(problem.prunable),
            "the start mask": None if problem.mask is None else {n: fingerprint(m) for n, m in problem.mask.items()},
            **{f"tensor {name!r}": fingerprint(t) for name, t in state.items()},
        }
    )
    # All cut the images alike: to what fits everywhere.
    return replace(problem, memory=min(processes.all_gather(problem.budget())))


def scored(problem: Problem, method_call: Call) -> dict[str, Tensor]:
    """The scores of a problem, checked, the same in all processes."""
    with problem.processes.barrier():
        with untouched(problem.model), torch.enable_grad():  # whatever the caller is in
            seed = generator(problem.seed, problem.round, _FORWARD).initial_seed()
            torch.default_generator.manual_seed(seed)
            if problem.device.type == "cuda":
                torch.cuda.default_generators[problem.device.index or 0].manual_seed(seed)
            result = method_call(problem)
        _check_scores(result, problem.prunable)
    # Computed in each process, scores may differ in their last bits on GPUs, or if the method draws unseeded.
    own = {name: result[name].detach() for name in problem.prunable}
    own = {name: score if score.is_floating_point() else score.double() for name, score in own.items()}
    scores = problem.processes.broadcast(own, problem.device)
    _check_extremes(problem, scorers.extremes(scores))
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
        if result[name].is_complex():
            raise InvalidInput(f"the method's score of {name!r} is complex; allowed: real numbers")


def _check_extremes(problem: Problem, extremes: Mapping[str, Sequence[float]]) -> None:
    """Refuse NaN, and name the weights whose scores say nothing, from the least and the greatest of each."""
    said: set[str] = problem.memo.setdefault("extremes", set())
    infinite, zero = [], []
    for name, found in extremes.items():
        if any(map(math.isnan, found)):
            raise InvalidInput(f"the scores of {name!r} hold NaN: are weights, statistics and images finite?")
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


def _fitting(mask: Mask, weights: Mapping[str, Tensor], left: Sequence[str]) -> Mask:
    """A mask without the weights that are left as they are, or an error if it is none of the others."""
    if not isinstance(mask, Mask):
        raise InvalidInput(f"mask must be a pathex.Mask, not {type(mask).__name__}")
    removed = [name for name in left if name in mask and not mask[name].all()]
    if removed:
        raise MaskMismatch(
            f"the mask removes weights that are left as they are: {listed(removed)}; make it with ignore= for them, or "
            "have them pruned with prunable="
        )
    shapes = {name: weight.shape for name, weight in weights.items()}
    found = {name: entry.shape for name, entry in mask.items() if name in weights or not entry.all()}
    if shapes != found:
        wrong = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        raise MaskMismatch(f"the mask does not fit the prunable weights: {', '.join(wrong[:5])}")
    return Mask({name: mask[name] for name in weights}, mask.metadata) if len(found) < len(mask) else mask


def name_of(method: str | CustomMethod) -> str:
    """A method's name, for messages and files."""
    if isinstance(method, str):
        return method
    found = scorers.resolve(method)
    return found.name if isinstance(found, scorers.Method) else getattr(method, "__name__", "callable")


def is_plain(value: Any) -> bool:
    """Whether a value can be written down as it is."""
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))

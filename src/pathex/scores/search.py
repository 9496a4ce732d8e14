"""What searches share: the mask of as many weights as are to be kept, batches of an epoch, and checkpoints."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pathex.errors import InvalidInput, PathexError
from pathex.files import read_torch, write_torch
from pathex.graph import Images, Tensors, tensors_in
from pathex.scores.batches import fingerprint
from pathex.scores.method import LossMethod, Method
from pathex.scores.model_reader import ModelReader
from pathex.scores.options import Count, Positive
from pathex.scores.problem import Problem, doubt_batches, generator

Target = int | Mapping[str, int]
_START, _NOISE, _ORDER = 11, 12, 13  # streams of random numbers
_SECONDS = 30  # between checkpoints, at least


@dataclass
class State:
    """What a search trains, by what, and what else it remembers from step to step."""

    values: dict[str, Tensor]
    optimizer: torch.optim.Optimizer | None = None
    more: dict[str, Tensor] = field(default_factory=dict)

    def load(self, known: Mapping[str, Any]) -> None:
        """Take over what `held` gave."""
        for own, saved in ((self.values, known["values"]), (self.more, known["more"])):
            for name, tensor in own.items():
                tensor.data.copy_(saved[name])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(known["optimizer"])

    def held(self) -> dict[str, Any]:
        """All of it, as a file holds it."""
        values = {name: tensor.detach() for name, tensor in self.values.items()}
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return {"values": values, "more": self.more, "optimizer": optimizer}


def target_of(problem: Problem, method: str) -> Target:
    """How many weights the mask is to keep, in all or of each; `InvalidInput` where no mask is asked for."""
    if problem.target is None:
        raise InvalidInput(f"{method} searches for a mask of a given sparsity: use pathex.prune, not pathex.score")
    return problem.target


def largest(values: Tensors, allowed: Tensors, target: Target) -> dict[str, Tensor]:
    """The mask of the largest values among those allowed, so many in each layer or in all of them together."""
    ranked = {name: value.detach().masked_fill(~allowed[name], -torch.inf) for name, value in values.items()}
    if isinstance(target, Mapping):
        return {name: _top(value, target[name]) for name, value in ranked.items()}
    kept = _top(torch.cat([value.flatten() for value in ranked.values()]), target)
    parts = kept.split([value.numel() for value in ranked.values()])
    return {name: part.view_as(ranked[name]) for name, part in zip(ranked, parts, strict=True)}


def _top(values: Tensor, number: int) -> Tensor:
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    mask[values.flatten().topk(number, sorted=False).indices] = True
    return mask.view_as(values)


def leaves(problem: Problem, draw: Callable[[Tensor, torch.Generator], Tensor]) -> dict[str, Tensor]:
    """A tensor to be trained for every weight, drawn in its shape."""
    drawn = {}
    for number, (name, weight) in enumerate(problem.prunable.items()):
        first = draw(weight, generator(problem.seed, _START, number))
        drawn[name] = first.to(problem.device, problem.dtype).requires_grad_()
    return drawn


def steps(problem: Problem, method: Method, state: State, total: int, every: int) -> Iterator[int]:
    """Numbers of the steps that a search has left; after each ``every`` of them it is told, and saved now and then."""
    path, done, saved = problem.checkpoint, 0, time.monotonic()
    asked = _asked(problem, method) if path is not None else {}
    if path is not None and path.exists():
        known = read_torch(path, "; remove it to begin anew")
        other = known.get("search") if isinstance(known, dict) else None
        if not isinstance(other, dict):
            raise InvalidInput(f"checkpoint {path} is of no search; remove it, or name another file")
        if differ := [name for name in asked if other.get(name) != asked[name]]:
            raise InvalidInput(
                f"checkpoint {path} is of another search (other {', '.join(differ)}); remove it, or name another file"
            )
        state.load(known)
        done = known["done"]
    if len(set(problem.processes.all_gather(done))) > 1:
        raise InvalidInput(f"checkpoint {path} is not the same file in all processes")
    for number in range(done, total):
        yield number
        if (number + 1) % every and number + 1 < total:
            continue
        if not all(bool(value.isfinite().all()) for value in state.values.values()):
            raise PathexError(f"{method.name}: the search diverges; allowed: a smaller lr, or float64")
        due = number + 1 == total or time.monotonic() - saved >= _SECONDS
        if path is not None and due and problem.processes.rank == 0:
            write_torch(path, {"search": asked, "done": number + 1, **state.held()})
            saved = time.monotonic()
        if problem.on_step is not None:
            problem.on_step(number + 1, total)


def _asked(problem: Problem, method: Method) -> dict[str, str]:
    """What tells one search from another."""
    tensors = {**dict(problem.model.named_parameters()), **dict(problem.model.named_buffers())}
    asked = {
        "method": method.name,
        **{f"option {name}": _text(name, value) for name, value in method.options.items()},
        "network": repr(problem.model),
        "sparsity or allocation": repr(problem.target),
        "seed": str(problem.seed),
        "pruning set": problem.fingerprint,
        "weights": str({name: fingerprint(tensor) for name, tensor in tensors.items()}),
        "start mask": str({name: fingerprint(kept) for name, kept in problem.allowed.items()}),
    }
    if method.needs == "labels" and problem.labels is not None:
        asked["labels"] = str(fingerprint(problem.labels))
    if method.needs == "images":  # such methods read them in batches as delivered
        asked["batches"] = str([[fingerprint(part) for part in tensors_in(x)] for x, _ in problem.batches])
    return asked


def _text(option: str, value: object) -> str:
    """An option in words that are the same in every process."""
    if not callable(value):
        return repr(value)
    name = getattr(value, "__qualname__", "<object>")
    if "<" in name:
        raise InvalidInput(f"checkpoint= cannot tell {option}={value!r:.60} again: a function of a module can be told")
    return f"{value.__module__}.{name}"


@dataclass(frozen=True, kw_only=True)
class LossSearch(LossMethod):
    """A search that descends a loss over the pruning set by a value of each weight; the weights stay as they are.

    Attributes:
        epochs: Passes over the pruning set, each in an order of its own.
        batch_size: Images of a step, at most.
        lr: Learning rate of the values.
        calibration: What BatchNorm uses: ``train``, the statistics of each step, or ``running``, the stored ones.
    """

    trains = True
    beside = 52

    calibration: Literal["train", "running"] = "train"
    epochs: Count = 20
    batch_size: Count = 512
    lr: Positive = 0.1

    @abstractmethod
    def start(self, problem: Problem) -> State:
        """What is trained, before the first step."""

    @abstractmethod
    def relaxed(self, problem: Problem, values: Tensors, source: torch.Generator) -> dict[str, Tensor]:
        """What a step multiplies the weights by, differentiable by the values."""

    @abstractmethod
    def decay(self, epoch: int) -> float:
        """What the learning rate is multiplied by in an epoch, from 0 on."""

    def loss_of(self, reader: ModelReader, x: Images, y: Tensor, masked: Tensors, whole: Tensors) -> Tensor:
        """The loss of a batch with masked weights, beside the whole ones."""
        return reader.loss_of(reader.forward(x, masked, reader.statistics(masked)), y)

    def gradients(self, problem: Problem, state: State, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the optimizer descends, from the gradients of the loss."""
        return grads

    def score(self, problem: Problem) -> dict[str, Tensor]:
        target_of(problem, self.name)
        reader, state = self.reader(problem), self.start(problem)
        reader.require_labels()
        images, labels = problem.images, problem.labels
        assert labels is not None and state.optimizer is not None
        count = -(-len(images) // self.batch_size)
        doubt_batches(problem, self.output, -(-len(images) // count), "a smaller batch_size")
        weights, other = reader.weights(), reader.other()
        for number in steps(problem, self, state, count * self.epochs, count):
            epoch, index = divmod(number, count)
            order = torch.randperm(len(images), generator=generator(problem.seed, _ORDER, epoch))
            batch = order.tensor_split(count)[index].to(problem.device)
            with torch.enable_grad():
                masks = self.relaxed(problem, state.values, generator(problem.seed, _NOISE, number))
                masked = {**other, **{name: weight * masks[name] for name, weight in weights.items()}}
                loss = self.loss_of(reader, images[batch], labels[batch], masked, {**other, **weights})
                found = torch.autograd.grad(loss, list(state.values.values()), materialize_grads=True)
            grads = self.gradients(problem, state, dict(zip(state.values, found, strict=True)))
            for name, value in state.values.items():
                value.grad = grads[name]
            for group in state.optimizer.param_groups:
                group["lr"] = self.lr * self.decay(epoch)
            state.optimizer.step()
        return {name: value.detach() for name, value in state.values.items()}

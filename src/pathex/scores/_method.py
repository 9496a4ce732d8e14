"""What a method is: a card that says what it computes, and a function from a problem to scores."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor

from pathex.errors import InvalidInput
from pathex.paths import survey
from pathex.scores._problem import Problem
from pathex.scores._reader import PathReader, Reader

__all__ = ["Card", "Method"]


@dataclass(frozen=True)
class Card:
    """What a user must know of a method.

    Attributes:
        name: Name in `pathex.methods`.
        title: Name in prose.
        citation: Paper.
        equation: The score of one weight.
        summed: What is summed and what is averaged.
        needs: What it reads of the data: ``nothing`` (their shape only), ``images`` or ``labels``.
        batchnorm: What BatchNorm uses while scoring.
        rounds: Published number of rounds.
        cost: Passes and memory of one round.
        holds_for: Activations and layers for which the derivation holds.
        differences: What the original code does differently.
        checked: How this implementation was checked.
        options: Each option in a line; filled from the function by `Method`.
    """

    name: str
    title: str
    citation: str
    equation: str
    summed: str
    needs: Literal["nothing", "images", "labels"]
    batchnorm: str
    rounds: int
    cost: str
    holds_for: str
    differences: str
    checked: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.title}"]
        about = {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)[2:-1]}
        lines += [f"  {name:<12} {text}" for name, text in about.items()]
        lines += [f"  option       {name}: {text}" for name, text in self.options.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Method:
    """A scorer with its card.

    Attributes:
        card: What a user must know.
        function: ``function(problem, **options) -> dict name -> score``; its keyword-only arguments are the options.
            With ``reading``, ``function(reader, **options)``.
        reading: Defaults of the options of the reader (usually `READING` or `MODEL_READING`), which are options of the
            method too. None for a method that needs no reader.
        reader: `PathReader` for a method that reads paths, `ModelReader` for one that differentiates the network.
        floor: Share of the network's density that the method keeps in every layer on a path, and in each of its parts
            that plays a role of its own (query, key, gate), together with a path through it; 0: none.
        piecewise_linear: Whether the derivation holds for piecewise-linear networks only; on others the method warns.
        revives: Whether a pruned weight may return in a later round; one that the user's start mask removed never does.
        beside: Bytes that it holds for a prunable weight beside the model, at most, however many images there are.
        paths: Whether it reads paths, so that weights on none of them have no score.
    """

    card: Card
    function: Callable[..., dict[str, Tensor]]
    reading: Mapping[str, Any] | None = None
    floor: float = 0.0
    reader: type[Reader] = PathReader
    revives: bool = False
    piecewise_linear: bool = False
    beside: int = 16
    paths: bool = False

    @property
    def defaults(self) -> dict[str, Any]:
        """Name and default of every option."""
        parameters = inspect.signature(self.function).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        return {**own, **(self.reading or {})}

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the method does not have.

        Args:
            options: The options of a call.

        Raises:
            InvalidInput: If there is an unknown one; the message lists the known ones.
        """
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            known = ", ".join(sorted(self.defaults)) or "none"
            raise InvalidInput(f"method {self.card.name!r} has no option {unknown[0]!r}. Known: {known}")

    def __call__(self, problem: Problem, **options: Any) -> dict[str, Tensor]:
        """Score every prunable weight.

        Args:
            problem: Model, mask and pruning set.
            **options: Options of the method.

        Returns:
            Name to score, higher = keep.
        """
        self.check(options)
        problem = replace(problem, beside=self.beside)
        if self.reading is None:
            return self.function(problem, **options)
        if self.piecewise_linear and (beyond := survey(problem.graph(options.get("output"))).beyond):
            problem.doubt(
                f"{self.card.name} is derived for piecewise-linear networks; {type(problem.model).__name__} also has "
                f"{', '.join(beyond)}, which are read by generalised rules (see its card)"
            )
        own = {name: value for name, value in options.items() if name not in self.reading}
        reading = {name: options.get(name, default) for name, default in self.reading.items()}
        return self.function(self.reader(problem, **reading), **own)

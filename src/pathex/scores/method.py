"""What a method is: a frozen dataclass whose fields are its options, with one method that scores."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import cleandoc
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

from torch import Tensor

from pathex.errors import check_names
from pathex.graph import Output
from pathex.paths import survey
from pathex.scores.model_reader import ModelReader
from pathex.scores.options import Count, LossOrName, Redraw, Scales, check_options
from pathex.scores.precision import safely, with_largest
from pathex.scores.problem import Problem
from pathex.scores.reader import PathReader, Reader

R = TypeVar("R", bound=Reader)
M = TypeVar("M", bound="Method")


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A scorer. The fields of a subclass are its options; what is said of all of its objects are class variables.

    Attributes:
        name: Name in `pathex.methods`.
        title: Name in prose.
        citation: Paper.
        equation: The score of one weight.
        needs: What it reads of the data: ``nothing`` (their shape only), ``images`` or ``labels``.
        rounds: Published number of rounds.
        rounding: How the released code rounds the number of kept weights in each round: ``up`` or ``down``; None: not
            known to do either.
        floor: Share of the network's density that the method keeps in every layer on a path, and in each of its parts
            that plays a role of its own (query, key, gate), together with a path through it; 0: none.
        paths: Whether it reads paths, so that weights on none of them have no score.
        revives: Whether a pruned weight may return in a later round; one that the user's start mask removed never does.
        piecewise_linear: Whether the derivation holds for piecewise-linear networks only; on others the method warns.
        trains: Whether it searches for the mask, which takes many passes over the data; it is then known what to keep.
        beside: Bytes that it holds for a prunable weight beside the model, at most, however many images there are.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    citation: ClassVar[str]
    equation: ClassVar[str]
    needs: ClassVar[Literal["nothing", "images", "labels"]] = "nothing"
    rounds: ClassVar[int] = 1
    rounding: ClassVar[Literal["up", "down"] | None] = None
    floor: ClassVar[float] = 0.0
    paths: ClassVar[bool] = False
    revives: ClassVar[bool] = False
    piecewise_linear: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    beside: ClassVar[int] = 16

    def __post_init__(self) -> None:
        check_options(self.options, get_type_hints(type(self), include_extras=True))

    @abstractmethod
    def score(self, problem: Problem) -> dict[str, Tensor]:
        """Score every prunable weight.

        Args:
            problem: Model, mask and pruning set; left as they are.

        Returns:
            Name to score in the shape of the weight, higher = keep.
        """

    def __call__(self, problem: Problem) -> dict[str, Tensor]:
        """`score`, with a warning on a network for which the derivation does not hold."""
        problem = replace(problem, beside=self.beside)
        if self.piecewise_linear and (beyond := survey(problem.graph(self.options.get("output"))).beyond):
            problem.doubt(
                f"{self.name} is derived for piecewise-linear networks; {type(problem.model).__name__} also has "
                f"{', '.join(beyond)}, which are read by generalised rules (see docs/methods/{self.name}.md)"
            )
        # These look at the precision themselves, or need none.
        if self.paths or self.trains or not self.runs_network:
            return self.score(problem)
        return safely(problem, lambda each: with_largest(self.score(each)))

    @property
    def runs_network(self) -> bool:
        """Whether it reads more of a network than its weights."""
        return self.paths or self.needs != "nothing"

    @property
    def options(self) -> dict[str, Any]:
        """Name to value of every option."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def changed(self) -> dict[str, Any]:
        """Name to value of the options that are not at their defaults."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}

    def having(self: M, options: Mapping[str, Any]) -> M:
        """A copy with other options; `InvalidInput` for one that is unknown or not allowed, with what is."""
        check_names(f"option of method {self.name!r}:", options, self.options)
        return replace(self, **options)

    def __str__(self) -> str:
        about = ("citation", "equation", "needs", "rounds")
        lines = [f"{self.name}: {self.title}", *(f"  {name:<9} {getattr(self, name)}" for name in about)]
        meaning = self._meaning()
        lines += [f"  option    {name}={value!r}: {meaning.get(name, '')}" for name, value in self.options.items()]
        return "\n".join(lines)

    def _meaning(self) -> dict[str, str]:
        """What each option means, from the docstrings of the class and its bases."""
        from docstring_parser import parse

        kinds = [kind for kind in reversed(type(self).__mro__) if kind.__doc__ and is_dataclass(kind)]
        parameters = [entry for kind in kinds for entry in parse(cleandoc(kind.__doc__ or "")).params]
        return {p.arg_name: " ".join((p.description or "").replace("``", "").split()) for p in parameters}


@dataclass(frozen=True, kw_only=True)
class _ReadingMethod(Method):
    """What methods that read the weights and statistics of the masked network share.

    Attributes:
        calibration_images: Most images that calibration reads, the first in canonical order.
        redraw: True draws normal weights with each tensor's own standard deviation every round (seeded by seed and
            round), or a function ``(name, tensor, generator) -> tensor``; the ticket keeps the original weights.
        scales: ``auto``: multiplicative parameters that start equal and below 0.01, and a head of zeros, are read as
            one, with a warning; ``stored``: as they are.
        output: Which of several outputs counts: a key or an index; None: the first tensor.
    """

    calibration_images: Count = 1024
    redraw: Redraw = False
    scales: Scales = "auto"
    output: Output = None

    def _read(self, reader: type[R], problem: Problem) -> R:
        names = {field.name for field in fields(reader)}
        return reader(problem, self.name, **{name: value for name, value in self.options.items() if name in names})


@dataclass(frozen=True, kw_only=True)
class PathMethod(_ReadingMethod):
    """A method that reads paths.

    Attributes:
        calibration: What BatchNorm uses: ``batch``, mean and biased variance of the masked network on the calibration
            images, or ``running``, the stored statistics.
    """

    paths = True

    calibration: Literal["batch", "running"] = "batch"

    def reader(self, problem: Problem) -> PathReader:
        """The network of a problem, as this method reads it."""
        return self._read(PathReader, problem)


@dataclass(frozen=True, kw_only=True)
class ModelMethod(_ReadingMethod):
    """A method that differentiates the network itself.

    Attributes:
        calibration: What BatchNorm uses: ``train``, the statistics of each batch as delivered, as in training (of
            layers that are frozen there too), ``batch``, mean and biased variance of the masked network on the
            calibration images, or ``running``, the stored statistics.
        scales: As in other methods, but a head of zeros is read as random signs drawn from the seed.
    """

    calibration: Literal["train", "batch", "running"] = "batch"

    @property
    def runs_network(self) -> bool:
        return True

    def reader(self, problem: Problem) -> ModelReader:
        """The network of a problem, as this method runs it."""
        return self._read(ModelReader, problem)


@dataclass(frozen=True, kw_only=True)
class LossMethod(ModelMethod):
    """A method that differentiates the loss.

    Attributes:
        loss: ``cross-entropy`` (of class numbers, of which -100 stands for no class and in label maps 255 too, or of
            class probabilities), ``bce`` (of logits, with binary labels), ``mse``, or a function
            ``(outputs, labels) -> mean loss``.
    """

    needs = "labels"

    calibration: Literal["train", "batch", "running"] = "train"
    loss: LossOrName = "cross-entropy"

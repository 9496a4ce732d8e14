"""The readings themselves: recording a forward pass, and replaying it as a linear map.

What each torch function means in them stands in the rule files (`_structure`, `_affine`, `_gates`, `_pools`, `_norms`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathex.paths._made import Tensors, checkpoints, entered
from pathex.paths._moments import Moments, finish, moments_of
from pathex.paths._reading import Reading, RuleTable, tensors_in

__all__ = [
    "RECORD",
    "REPLAY",
    "ArgMax",
    "Coefficients",
    "Decision",
    "Factors",
    "Gate",
    "PerSample",
    "Record",
    "Replay",
    "Site",
    "Slope",
    "Smooth",
]

RECORD = RuleTable()
REPLAY = RuleTable()

Coefficients = Literal["plain", "squared", "ones", "absolute", "connected"]
PerSample = Literal["refuse", "one"]
Smooth = Literal["secant", "tangent", "mixed"]


@dataclass(frozen=True)
class Gate:
    """Local slope at each unit: 1 where `open`, elsewhere `slope` (a number, or a tensor that broadcasts)."""

    open: Tensor
    slope: float | Tensor = 0.0

    @property
    def shape(self) -> torch.Size:
        """Shape of the units."""
        return self.open.shape


@dataclass(frozen=True)
class ArgMax:
    """The route through a max pool: for each output the flat index of the winning input in its channel."""

    indices: Tensor
    shape: torch.Size


@dataclass(frozen=True)
class Slope:
    """A coefficient at each unit: of a smooth activation, or the per-sample scale of a normalisation.

    Attributes:
        forward: What a path is multiplied with on its way; broadcasts to `shape`.
        shape: Shape of the units.
        backward: What a gradient is multiplied with on its way back; None: the same.
    """

    forward: Tensor
    shape: torch.Size
    backward: Tensor | None = None


@dataclass(frozen=True)
class Factors:
    """The recorded operands of a product of several tensors that depend on the input."""

    operands: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """Shape of the first operand."""
        return self.operands[0].shape


@dataclass(frozen=True)
class Decision:
    """The result of a function without derivative (a comparison, the order of a sort), and the shape of its input."""

    result: Any
    shape: torch.Size


Site = Gate | ArgMax | Slope | Factors | Decision


@dataclass
class _Convolved:
    """The shape of the result of a convolution, and for each use of it whether that is BatchNorm."""

    shape: torch.Size
    used_by: list[bool] = field(default_factory=list)


@dataclass(eq=False)
class Record(Reading):
    """The plain forward pass; keeps the coefficient of every non-linear site and the moments of every BatchNorm.

    Attributes:
        given: Moments to use, in the order of the BatchNorm calls; ``"running"``: the stored ones; None: those of the
            images that pass.
        smooth: The coefficient of a smooth activation phi with phi(0) = 0: ``secant`` phi(x) / x, ``tangent`` phi'(x),
            or ``mixed``: the secant on the way and the tangent on the way back.
    """

    model: nn.Module
    tensors: Tensors
    given: Sequence[Moments] | Literal["running"] | None = None
    smooth: Smooth = "secant"
    sites: list[Site] = field(default_factory=list)
    moments: list[Moments] = field(default_factory=list)

    rules: ClassVar[RuleTable] = RECORD

    def __post_init__(self) -> None:
        Reading.__init__(self, self.model, self.tensors)
        self._convolved: dict[str, list[_Convolved]] = {}

    def convolved(self, weight: Tensor, result: Tensor) -> Tensor:
        """Watch what the network does with the result of a convolution.

        Args:
            weight: Its weight.
            result: Its result.

        Returns:
            The result.
        """
        if (name := self.name_of(weight)) is not None:
            result._pathex_convolved = _Convolved(result.shape)  # type: ignore[attr-defined]
            self._convolved.setdefault(name, []).append(result._pathex_convolved)  # type: ignore[attr-defined]
        return result

    def uses(self, *values: Any, normalises: bool = False) -> None:
        """Take down that the network uses the results of convolutions.

        Args:
            *values: Tensors, or what holds them.
            normalises: Whether it is BatchNorm that does.
        """
        for tensor in tensors_in(values):
            if (convolved := getattr(tensor, "_pathex_convolved", None)) is not None:
                convolved.used_by.append(normalises)

    def normalised(self) -> dict[str, list[torch.Size]]:
        """The weights of convolutions whose results BatchNorm alone uses.

        Returns:
            Name to the shapes of the results, in the order of the calls.
        """
        alone = {n: calls for n, calls in self._convolved.items() if all(call.used_by == [True] for call in calls)}
        return {name: [call.shape for call in calls] for name, calls in alone.items()}

    def _apply(self, rule: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.uses(args, kwargs, normalises=func is F.batch_norm)
        return super()._apply(rule, func, args, kwargs)

    def site(self, site: Site) -> None:
        """Keep the coefficient of a non-linear site.

        Args:
            site: The site.
        """
        self.sites.append(site)

    def decide(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute a call without derivative and keep its result.

        Args:
            func: The torch function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            The result.
        """
        with torch.no_grad():
            result = func(*args, **kwargs)
        self.site(Decision(result, _shape_of(args)))
        return _copied(result)

    def measure(self, x: Tensor, stored: Moments | None) -> Moments:
        """The moments of what reaches a BatchNorm layer.

        Args:
            x: ``(N, C, ...)``.
            stored: The statistics that the layer keeps.

        Returns:
            Mean and biased variance.

        Raises:
            UnsupportedOperation: If the moments to use were given, but fewer than there are BatchNorm calls.
        """
        if isinstance(self.given, Sequence) and not isinstance(self.given, str):
            raise self.unsupported("batch_norm", f"moments of {len(self.given)} BatchNorm calls were given")
        return finish(moments_of(x.detach()), stored)


@dataclass(eq=False)
class Replay(Reading):
    """The network as a linear map, with the coefficients of a recorded pass or with every gate open.

    Attributes:
        sites: The recorded sites; None opens every gate.
        moments: The moments of the BatchNorm layers, in the order of their calls; ``"running"``: the stored ones.
        coefficients: How coefficients enter. ``plain``: as they are. ``squared``: weights, BatchNorm and fixed
            coefficients squared where they act. ``absolute``: their absolute values. ``ones``: as ``absolute``, but
            BatchNorm counts 1 (for tensors that are ones, or a mask). ``connected``: 1 where not zero
            (a mask, which needs a gradient, as it is). Gates enter as
            they are in ``plain``, squared otherwise.
        pools: How an open max pool reads its window: ``sum`` or ``max``.
        per_sample: What an open reading does with coefficients that only a recorded sample has (normalisation over
            the units of a sample, attention, gates, products of branches): ``refuse``, or ``one``: they count 1.
        values_only: Whether open paths do not pass what only makes a coefficient (softmax, sigmoid).
        normalised: Name to shapes, as `Record.normalised` has them. These convolutions wait for their BatchNorm, whose
            coefficient then multiplies their weight and not their result, which is many times larger.
    """

    model: nn.Module
    tensors: Tensors
    sites: Sequence[Site] | None
    moments: Sequence[Moments] | Literal["running"]
    coefficients: Coefficients = "squared"
    pools: Literal["sum", "max"] = "sum"
    per_sample: PerSample = "refuse"
    values_only: bool = False
    normalised: Mapping[str, Sequence[torch.Size]] = field(default_factory=dict)

    rules: ClassVar[RuleTable] = REPLAY

    def __post_init__(self) -> None:
        Reading.__init__(self, self.model, self.tensors)
        self._waiting = {name: iter(shapes) for name, shapes in self.normalised.items()}
        self._next_site = 0
        self._next_moments = 0

    # -- coefficients ----------------------------------------------------------------------------------------------

    def coefficient(self, value: Any) -> Any:
        """How a fixed linear coefficient (a weight, a number, a filter) enters this reading.

        Args:
            value: A number or a tensor.

        Returns:
            The number or tensor to multiply with.
        """
        if self.coefficients == "plain":
            return value
        if self.coefficients == "connected":
            if not isinstance(value, Tensor):
                return float(value != 0)
            return value if value.requires_grad else (value != 0).to(value.dtype)
        if not isinstance(value, Tensor):
            return value * value if self.coefficients == "squared" else abs(value)
        return entered(torch.square if self.coefficients == "squared" else torch.abs, value)

    def slope(self, value: Any) -> Any:
        """How the slope of a gate enters this reading.

        Args:
            value: A number or a tensor.

        Returns:
            The number or tensor to multiply with.
        """
        return value if self.coefficients == "plain" else value * value

    def open_per_sample(self, func: Callable[..., Any]) -> None:
        """Called by the rule of an operation whose coefficients belong to a sample, where every gate is open.

        Args:
            func: The torch function, for the error message.

        Raises:
            UnsupportedOperation: If such coefficients are refused.
        """
        if self.per_sample == "refuse" and self.coefficients != "connected":
            why = "its coefficients depend on the sample and have no open reading; per_sample='one' reads them as 1"
            raise self.unsupported(getattr(func, "__name__", str(func)), why)

    def joined(self, terms: Sequence[Tensor]) -> Tensor:
        """What a product of several factors passes on.

        Args:
            terms: For each factor in turn what its paths bring.

        Returns:
            Their sum.
        """
        return sum(terms[1:], start=terms[0])

    def convolved(self, weight: Tensor, like: Tensor, product: Callable[[Tensor | None], Tensor]) -> Tensor:
        """The result of a convolution, or what stands for it until its BatchNorm comes.

        Args:
            weight: Its weight.
            like: A tensor of the same kind as its result.
            product: From the coefficient of each channel, or None, to the result.

        Returns:
            The result, or a tensor of its shape that only `normalise` can read.
        """
        name = self.name_of(weight)
        if name is None or name not in self._waiting:
            return product(None)
        held = like.new_empty(()).expand(next(self._waiting[name]))
        held._pathex_product = product  # type: ignore[attr-defined]
        return held

    def normalise(self, input: Tensor, scale: Tensor | None) -> Tensor:
        """What arrives at a BatchNorm times its coefficient.

        Args:
            input: ``(N, C, ...)``, or what `convolved` returned.
            scale: ``(C,)``; None counts 1.

        Returns:
            A new tensor ``(N, C, ...)``.
        """
        product: Callable[[Tensor | None], Tensor] | None = getattr(input, "_pathex_product", None)
        if product is not None:
            return product(scale)
        return input.clone() if scale is None else input * scale.to(input.dtype).view(-1, *[1] * (input.dim() - 2))

    def _apply(self, rule: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if checkpoints():
            raise self.checkpointed()
        watched = tensors_in((args, kwargs)) if self._waiting and func is not F.batch_norm else ()
        if any(hasattr(tensor, "_pathex_product") for tensor in watched):
            name = getattr(func, "__name__", str(func))
            raise self.unsupported(name, "in the recorded pass only batch_norm used the result of this convolution")
        return super()._apply(rule, func, args, kwargs)

    # -- the tape --------------------------------------------------------------------------------------------------

    def next_site(self, kind: type[Site], shape: torch.Size, func: Callable[..., Any]) -> Any:
        """The recorded site that belongs to the call at hand.

        Args:
            kind: Class of the site.
            shape: Shape of the input of the call.
            func: The torch function, for the error message.

        Returns:
            The site.

        Raises:
            UnsupportedOperation: If the network took another route than in the recorded pass.
        """
        assert self.sites is not None
        name = getattr(func, "__name__", str(func))
        if self._next_site >= len(self.sites):
            raise self.unsupported(name, "the recorded pass had fewer non-linear sites")
        site = self.sites[self._next_site]
        self._next_site += 1
        if not isinstance(site, kind) or site.shape != shape:
            raise self.unsupported(name, f"the recorded pass had another site of shape {tuple(site.shape)} here")
        return site

    def decide(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The recorded result of a call without derivative.

        Args:
            func: The torch function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            The result.
        """
        if self.sites is None:
            return super().decide(func, args, kwargs)
        return _copied(self.next_site(Decision, _shape_of(args), func).result)

    def next_moments(self) -> Moments | None:
        """The moments of the BatchNorm call at hand.

        Returns:
            The moments, or None for the stored ones.

        Raises:
            UnsupportedOperation: If the recorded pass had fewer BatchNorm calls.
        """
        if self.moments == "running":
            return None
        if self._next_moments >= len(self.moments):
            raise self.unsupported("batch_norm", "the recorded pass had fewer BatchNorm calls")
        self._next_moments += 1
        return self.moments[self._next_moments - 1]

    def finish(self) -> None:
        """Check that the whole recorded pass was replayed.

        Raises:
            UnsupportedOperation: If the network took another route than in the recorded pass.
        """
        if self.sites is not None and self._next_site < len(self.sites):
            raise self.unsupported("the network", "the recorded pass had more non-linear sites")


def _shape_of(args: tuple[Any, ...]) -> torch.Size:
    return next((value.shape for value in args if isinstance(value, Tensor)), torch.Size())


def _copied(result: Any) -> Any:
    """A copy: the network may write into the result."""
    if isinstance(result, Tensor):
        return result.clone()
    return type(result)(map(_copied, result)) if isinstance(result, (tuple, list)) else result

"""The paths of a masked network in numbers, and what Path eXclusion says of its trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pathex.errors import InvalidInput, check_name
from pathex.graph import Output, Tensors, copied, ones
from pathex.masks import Mask, all_kept, own_module, prunable_weights
from pathex.ntk.network import read
from pathex.ntk.trace import trace
from pathex.paths import PerSample, Use, connectivity, count_paths, record, replay, replay_open
from pathex.scores import PX, Problem, PXLiteral, SynFlowL2, parse_memory, read_batches

if TYPE_CHECKING:
    from altair import LayerChart


@dataclass(frozen=True)
class LayerPaths:
    """A masked weight: output channels, those with a weight on a path, and the fewest, mean and most such weights."""

    units: int
    live: int
    fan_in: tuple[int, float, int]


@dataclass(frozen=True)
class PathNumbers:
    """Paths of a masked network; all sums are over the masked weights alone, in float64.

    Attributes:
        log10_paths: Of the number of paths from an input to an output, positions counted, averages as shares.
        log10_active: Of the number of those whose gates are all open, the mean over the images.
        layers: Name of each masked weight to its numbers.
        disconnected: Kept weights on no path.
        trace: The exact trace of these weights.
        bound: What PX bounds it by: ``|J_v^f|^2 |J_theta^v|^2``, of all images, outputs and paths.
        bound_by_output: The same of each output alone, added up, which is what ``px-literal`` scores.
        expected: The trace expected over independent signs of the weights with gates held fixed, which ``px`` scores.
    """

    log10_paths: float
    log10_active: float
    layers: dict[str, LayerPaths]
    disconnected: int
    trace: float
    bound: float
    bound_by_output: float
    expected: float

    @property
    def tightness(self) -> float:
        """What the trace is of its bound by output; NaN where both are zero."""
        return self.trace / self.bound_by_output if self.bound_by_output else nan

    def plot(self) -> "LayerChart":
        """Live output channels of each layer: where the network narrows."""
        import pandas as pd

        from pathex.figures import flow

        rows = [("live channels", name, layer.live, layer.units) for name, layer in self.layers.items()]
        return flow(pd.DataFrame(rows, columns=["series", "layer", "kept", "total"]))


def path_numbers(
    model: nn.Module,
    x: Any,
    mask: Tensors | None = None,
    *,
    batch_norm: Literal["stored", "calibrated"] = "calibrated",
    per_sample: PerSample = "refuse",
    output: Output = None,
    memory: int | str | None = None,
) -> PathNumbers:
    """Count the paths of a masked network, and compare the bound of Path eXclusion with the trace.

    The bound holds of piecewise-linear networks without biases; where biases or shifts of BatchNorm reach the outputs,
    the trace has paths that begin there.

    Args:
        model: The network; left as it was.
        x: Images ``(N, ...)``.
        mask: What is kept; None keeps all prunable weights.
        batch_norm: As for `pathex.ntk.kernel`; ``batch`` couples the images and has no paths.
        per_sample: Coefficients of a sample (LayerNorm, attention): ``refuse``, or ``one``: where all gates are open
            they count 1.
        output: Which of several outputs counts.
        memory: Bytes beside the model.

    Returns:
        The numbers.

    Raises:
        InvalidInput: If the network takes several inputs, or an argument is none of these.
        PathexError: If there are more paths than float64 has numbers for.
        UnsupportedOperation: If paths cannot be read through the network.

    Source: Iurada, Ciccone, Tommasi, CVPR 2024, arXiv 2406.01820, Eq. 9 to 14.
    """
    check_name("batch_norm", batch_norm, ("stored", "calibrated"))
    x = read_batches(x, own_module(model))
    model = copied(own_module(model)).double().eval()
    mask = Mask(all_kept(prunable_weights(model)) if mask is None else mask)
    mask.check(model)
    images = read(x, model)[0].to(next(model.parameters()).device, torch.float64)
    if not isinstance(images, Tensor):
        raise InvalidInput(f"{type(model).__name__} takes several inputs; allowed for paths in numbers: one tensor")
    calibration: Any = {"stored": "running", "calibrated": "batch"}[batch_norm]
    weights = {name: model.get_parameter(name) for name in mask}
    problem = Problem(model, weights, [(images, None)], dict(mask), memory=parse_memory(memory))
    how: dict[str, Any] = {"calibration": calibration, "output": output, "scales": "stored"}

    def over_squares(scores: Tensors) -> float:
        # A removed weight has no score, nor has one of zero, whatever its derivative.
        found = (score / weights[name].detach().square() for name, score in scores.items())
        return float(sum(torch.where(each.isfinite(), each, 0.0).sum() for each in found))

    ways = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    ways |= {name: entry.to(images.device, torch.float64) for name, entry in mask.items()}
    own = {name: weight.detach() * ways[name] for name, weight in weights.items()}
    recording = record(model, images, tensors=own, calibration=calibration, output=output)
    start, again = ones(images, torch.float64), dict[str, Any](tensors=ways, coefficients="ones", output=output)
    active = replay(model, start, recording, **again).sum() / len(images)
    opened = again | {"statistics": recording.statistics, "coefficients": "connected", "per_sample": per_sample}
    every = replay_open(model, start[:1], **opened).sum()
    seen = replay(model, images.square(), recording, **again).sum()
    weighed = over_squares(SynFlowL2(**how, per_sample=per_sample).score(problem))
    by_output = over_squares(PXLiteral(**how, per_sample=per_sample).score(problem))
    exact = trace(model, x, mask, batch_norm=batch_norm, output=output, memory=memory).by_parameter
    connected = connectivity(model, mask, images, output=output)
    uses = count_paths(model, images, mask, per_sample=per_sample, output=output).uses
    return PathNumbers(
        float(every.log10()),
        float(active.log10()),
        {name: _layer(connected.effective[name], uses[name]) for name in mask if uses[name]},
        connected.disconnected,
        sum(exact[name] for name in mask),
        float(seen) * weighed,
        by_output,
        over_squares(PX(**how).score(problem)),
    )


def _layer(effective: Tensor, uses: Sequence[Use]) -> LayerPaths:
    fan_in = uses[0].by_units(effective).flatten(2).flatten(0, 1).sum(1)
    live = fan_in[fan_in > 0].tolist() or [0]
    return LayerPaths(len(fan_in), int((fan_in > 0).sum()), (min(live), sum(live) / len(live), max(live)))

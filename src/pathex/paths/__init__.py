"""A network seen as paths: gates recorded, replayed, removed, on the graph of an unmodified module.

The forward pass of a piecewise-linear network is a sum over paths, ``f_k(x) = sum_p v_p(theta) a_p(x) x_s(p)``: the
product of the weights along the path, its gate, and the input where it starts. Three readings of the same graph:

- `record`: the plain forward pass; keeps the local coefficient of every non-linear site;
- `replay`: the same linear map, with chosen parameters and input, the coefficients replayed;
- `replay_open`: every gate 1, hence all paths.

An operator without a rule raises `pathex.errors.UnsupportedOperation` that names the module and the operator.
"""

from pathex.paths import rules
from pathex.paths.counts import PathCounts, Use, count_paths
from pathex.paths.forward import Statistics, calibrate, footprint, forward, tensors_of, unreached
from pathex.paths.linear import Coefficients, Linear, PerSample, run_linear
from pathex.paths.liveness import (
    Connectivity,
    OnPaths,
    connectivity,
    has_empty_units,
    off_path,
    output_places,
    roles,
    without_narrow_units,
)
from pathex.paths.lowering import lowered
from pathex.paths.moments import Moments
from pathex.paths.passes import record, replay, replay_open
from pathex.paths.recording import Gate, Record, Recording, Smooth
from pathex.paths.scales import TINY_SCALE, Survey, read_scales, survey
from pathex.paths.walker import Walker
from pathex.paths.weights import Call, Weights, per_dimension

__all__ = [
    "TINY_SCALE",
    "Call",
    "Coefficients",
    "Connectivity",
    "Gate",
    "Linear",
    "Moments",
    "OnPaths",
    "PathCounts",
    "PerSample",
    "Record",
    "Recording",
    "Smooth",
    "Statistics",
    "Survey",
    "Use",
    "Walker",
    "Weights",
    "calibrate",
    "connectivity",
    "count_paths",
    "footprint",
    "forward",
    "has_empty_units",
    "lowered",
    "off_path",
    "output_places",
    "per_dimension",
    "read_scales",
    "record",
    "replay",
    "replay_open",
    "roles",
    "rules",
    "run_linear",
    "survey",
    "tensors_of",
    "unreached",
    "without_narrow_units",
]

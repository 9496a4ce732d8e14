"""A network seen as paths: gates recorded, replayed, removed, on unmodified modules.

The forward pass of a piecewise-linear network is a sum over paths, ``f_k(x) = sum_p v_p(theta) a_p(x) x_s(p)``: the
product of the weights along the path, its gate, and the input where it starts. Three readings of the same module:

- `record`: the plain forward pass; keeps the local coefficient of every non-linear site;
- `replay`: the same linear map, with chosen parameters and input, the coefficients replayed;
- `replay_open`: every gate 1, hence all paths.

An operation without a rule raises `pathex.errors.UnsupportedOperation` that names the module and the function.
"""

from pathex.paths._layout import layout_of
from pathex.paths._made import Leaves, Made, Tensors
from pathex.paths._moments import Moments
from pathex.paths._network import compute_dtype, run, tensors_of, tf32_products, untouched
from pathex.paths._reading import spellings
from pathex.paths._readings import Coefficients, PerSample, Smooth
from pathex.paths.connectivity import Connectivity, connectivity, on_paths, roles
from pathex.paths.observing import Statistics, calibrate, forward
from pathex.paths.passes import Recording, record, replay, replay_open
from pathex.paths.scales import Footprint, Survey, read_scales, survey

__all__ = [
    "Coefficients",
    "Connectivity",
    "Footprint",
    "Leaves",
    "Made",
    "Moments",
    "PerSample",
    "Recording",
    "Smooth",
    "Statistics",
    "Survey",
    "Tensors",
    "calibrate",
    "compute_dtype",
    "connectivity",
    "forward",
    "layout_of",
    "on_paths",
    "read_scales",
    "record",
    "replay",
    "replay_open",
    "roles",
    "run",
    "spellings",
    "survey",
    "tensors_of",
    "tf32_products",
    "untouched",
]

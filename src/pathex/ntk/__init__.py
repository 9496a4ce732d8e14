"""The Neural Tangent Kernel of a masked network, and what it predicts.

    K[(n, k), (m, l)] = sum_j df_k(x_n)/dtheta_j  df_l(x_m)/dtheta_j

over all parameters j that the mask keeps, biases and affine parameters included. The network is run in evaluation mode
and in its own precision; sums are made in float64. Options of every function that computes:

- ``batch_norm``: ``stored``: the stored statistics; ``calibrated``: those of the masked network on the images, as
  constants; ``batch``: those of the batch as in training, through which derivatives flow: each output depends on
  every image. None: ``batch`` if the model is in train mode, else ``stored``.
- ``output``: which of several outputs counts, a key or an index; None is the first tensor.
- ``memory``: bytes beside the model, or text such as ``2GiB``; None is 2 GiB, or half of what is free on a GPU.
"""

from pathex.ntk.bound import LayerPaths, PathNumbers, path_numbers
from pathex.ntk.kernel import Cost, Kernel, alignment, distance, kernel
from pathex.ntk.predict import predict
from pathex.ntk.prediction import Linearised, Regression, linearised, regression
from pathex.ntk.spectrum import Estimate, Spectrum, lanczos, spectrum
from pathex.ntk.trace import Trace, trace

__all__ = [
    "Cost",
    "Estimate",
    "Kernel",
    "LayerPaths",
    "Linearised",
    "PathNumbers",
    "Regression",
    "Spectrum",
    "Trace",
    "alignment",
    "distance",
    "kernel",
    "lanczos",
    "linearised",
    "path_numbers",
    "predict",
    "regression",
    "spectrum",
    "trace",
]

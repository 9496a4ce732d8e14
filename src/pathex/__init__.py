"""pathex: find lottery tickets in vision models before training.

import pathex

result = pathex.prune(model, method="px", sparsity=0.982, data=batches)
handle = pathex.attach(model, result.mask, optimizer)
"""

import importlib
from typing import TYPE_CHECKING, Any

from pathex import errors
from pathex.attaching import attach, make_permanent
from pathex.masks import Mask
from pathex.pruning import prune, score
from pathex.scores import methods

if TYPE_CHECKING:
    from pathex import data, models

__version__ = "0.1.0"

__all__ = [
    "Mask",
    "__version__",
    "attach",
    "data",
    "errors",
    "make_permanent",
    "methods",
    "models",
    "prune",
    "score",
]

# Loaded on first use: they import torchvision, timm, pandas and the like.
_LAZY = ("data", "models", "report", "runs")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"pathex.{name}")
    raise AttributeError(f"module 'pathex' has no attribute {name!r}")

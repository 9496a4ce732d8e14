"""pathex: find lottery tickets in vision models before training.

    import pathex

    result = pathex.prune(model, method="px", sparsity=0.982, data=batches)
    handle = pathex.attach(model, result.mask, optimizer)

Everything is loaded on first use, so that importing pathex costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pathex._version import __version__

if TYPE_CHECKING:
    from pathex import ablations, converters, counts, data, dynamic, errors, mask_files, matching, models, paths
    from pathex.attaching import attach, make_permanent
    from pathex.masks import Mask
    from pathex.pruning import prune, score
    from pathex.scores import (
        PX,
        FisherDiagonal,
        Force,
        Grasp,
        IterativeSnip,
        Magnitude,
        Npb,
        NtkDiagonal,
        NtkSap,
        Phew,
        ProsPr,
        PXCvpr24,
        PXLiteral,
        Random,
        Snip,
        SynFlow,
        SynFlowL2,
        methods,
    )

__all__ = [
    "PX",
    "FisherDiagonal",
    "Force",
    "Grasp",
    "IterativeSnip",
    "Magnitude",
    "Mask",
    "Npb",
    "NtkDiagonal",
    "NtkSap",
    "PXCvpr24",
    "PXLiteral",
    "Phew",
    "ProsPr",
    "Random",
    "Snip",
    "SynFlow",
    "SynFlowL2",
    "__version__",
    "ablations",
    "attach",
    "converters",
    "counts",
    "data",
    "dynamic",
    "errors",
    "make_permanent",
    "mask_files",
    "matching",
    "methods",
    "models",
    "paths",
    "prune",
    "score",
]

_HOME = {
    "Mask": "masks",
    "attach": "attaching",
    "make_permanent": "attaching",
    "methods": "scores",
    **dict.fromkeys(
        (
            "PX",
            "PXLiteral",
            "PXCvpr24",
            "SynFlow",
            "SynFlowL2",
            "Snip",
            "IterativeSnip",
            "Force",
            "Grasp",
            "NtkSap",
            "NtkDiagonal",
            "FisherDiagonal",
            "ProsPr",
            "Phew",
            "Npb",
            "Magnitude",
            "Random",
        ),
        "scores",
    ),
    "prune": "pruning",
    "score": "pruning",
}
_MODULES = frozenset(
    {
        "ablations",
        "converters",
        "counts",
        "data",
        "dynamic",
        "errors",
        "mask_files",
        "matching",
        "models",
        "paths",
        "report",
        "runs",
        "sweep",
        "tasks",
    }
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"pathex.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"pathex.{name}")
    raise AttributeError(f"module 'pathex' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

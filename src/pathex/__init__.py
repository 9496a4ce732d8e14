"""pathex: find lottery tickets in vision models before training.

    import pathex

    result = pathex.prune(model, method="px", sparsity=0.982, data=batches)
    handle = pathex.attach(model, result.mask, optimizer)

Everything is loaded on first use, so that importing pathex costs next to nothing.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathex import (
        analysis,
        compaction,
        data,
        errors,
        experiments,
        graph,
        masks,
        models,
        ntk,
        paths,
        pruning,
        scores,
        sparse,
        tasks,
        train,
    )
    from pathex.compaction import compact
    from pathex.experiments.runs import load_run, load_ticket, save_ticket
    from pathex.masks import Mask, attach, make_permanent
    from pathex.pruning import dynamic, prune, score
    from pathex.scores import (
        PX,
        Cts,
        DPaI,
        EdgePopup,
        FisherDiagonal,
        FisherTaylor,
        Force,
        Grasp,
        HutchinsonTaylor,
        IterativeGrasp,
        IterativeSnip,
        Magnitude,
        NodePath,
        NtkDiagonal,
        NtkSap,
        Phew,
        ProsPr,
        PXCvpr24,
        PXCvpr24V2,
        PXLiteral,
        Random,
        Snip,
        SynFlow,
        SynFlowL2,
        WideTopo,
        methods,
    )
    from pathex.sparse import compile

__version__ = "0.1.0"

__all__ = [
    "PX",
    "Cts",
    "DPaI",
    "EdgePopup",
    "FisherDiagonal",
    "FisherTaylor",
    "Force",
    "Grasp",
    "HutchinsonTaylor",
    "IterativeGrasp",
    "IterativeSnip",
    "Magnitude",
    "Mask",
    "NodePath",
    "NtkDiagonal",
    "NtkSap",
    "PXCvpr24",
    "PXCvpr24V2",
    "PXLiteral",
    "Phew",
    "ProsPr",
    "Random",
    "Snip",
    "SynFlow",
    "SynFlowL2",
    "WideTopo",
    "__version__",
    "analysis",
    "attach",
    "compact",
    "compaction",
    "compile",
    "data",
    "dynamic",
    "errors",
    "experiments",
    "graph",
    "load_run",
    "load_ticket",
    "make_permanent",
    "masks",
    "methods",
    "models",
    "ntk",
    "paths",
    "prune",
    "pruning",
    "save_ticket",
    "score",
    "scores",
    "sparse",
    "tasks",
    "train",
]

_ROOMS = frozenset({"analysis", "compaction", "data", "errors", "experiments", "graph", "masks"})
_ROOMS |= {"models", "ntk", "paths", "pruning", "scores", "sparse", "tasks", "train"}
_HOME = {
    "compact": "compaction",
    **dict.fromkeys(("Mask", "attach", "make_permanent"), "masks"),
    "compile": "sparse",
    **dict.fromkeys(("dynamic", "prune", "score"), "pruning"),
    **dict.fromkeys(("load_run", "load_ticket", "save_ticket"), "experiments.runs"),
}
_MOVED = {
    "pathex.ablations": "pathex.analysis",
    "pathex.converters": "pathex.masks.formats",
    "pathex.counts": "pathex.analysis",
    "pathex.dynamic": "pathex.pruning.dynamic",
    "pathex.mask_files": "pathex.masks.files pathex.pruning",
    "pathex.matching": "pathex.analysis",
    "pathex.report": "pathex.experiments.report",
    "pathex.runs": "pathex.experiments.runs",
    "pathex.sweep": "pathex.experiments.sweep",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"pathex.{name}")
    if f"pathex.{name}" in _MOVED and name not in __all__:
        return importlib.import_module(f"pathex.{name}")
    if name in __all__:
        return getattr(importlib.import_module(f"pathex.{_HOME.get(name, 'scores')}"), name)
    raise AttributeError(f"module 'pathex' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Moved:
    """Finds modules where they are now, for imports by their names of 0.1."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        pass

    def exec_module(self, module: ModuleType) -> None:
        homes = _MOVED[module.__name__].split()
        message = f"{module.__name__} is now {' and '.join(homes)}; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        for home in map(importlib.import_module, homes):
            vars(module).update({name: getattr(home, name) for name in home.__all__})


sys.meta_path.append(_Moved())

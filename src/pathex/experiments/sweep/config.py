"""The options of a sweep, as data: which runs, and how they are carried out."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    SettingsFile = str | os.PathLike[str]
else:
    # A path of this type that stands in a sweep file is relative to that file.
    from jsonargparse.typing import Path_fr as SettingsFile

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class SweepConfig:
    """A sweep. ``base`` and ``settings`` are common to all runs; ``grid`` and ``list`` say what the runs are.

    Settings are those of ``pathex run``. A dotted name such as ``method_options.redraw`` sets one option; a plain name
    replaces the whole mapping. What comes later wins: base, settings, then the run's own.

    Attributes:
        base: Settings to begin with: a file of ``pathex run`` (relative to the sweep file), or a mapping.
        settings: Settings of every run, over those of the base.
        grid: Mapping of settings to lists of values; every combination is a run. Several grids are a list of mappings.
        executor: ``local`` (processes of this machine) or ``ray`` (tasks of Ray, here or on a cluster).
        concurrent: Runs at a time, on each GPU or on the CPU; null is one on each GPU, or as many as the processors
            allow.
        threads: Threads of each run; null is 1 on the CPU, where their number decides the last bits of the results, and
            an equal share of the processors beside GPUs.
        retries: How often a run goes on after its process was lost (killed, out of memory, a node gone).
        address: Address of a Ray cluster, or ``auto``; null starts Ray on this machine.
        out: Folder of the runs and of their table.
        list: Mappings of settings; each is one run, as it is.
    """

    base: SettingsFile | dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] | tuple[dict[str, Any], ...] = field(default_factory=dict)
    executor: str = "local"
    concurrent: int | None = None
    threads: int | None = None
    retries: int = 2
    address: str | None = None
    out: str = "runs"
    # Last, because its name would hide the type in the lines below it.
    list: tuple[dict[str, Any], ...] = ()

"""What a sweep leaves beside its runs: their table, and a record of each failure."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathex.errors import PathexError
from pathex.experiments.runs import WITHOUT_EFFECT, RunConfig, check_same, finished_result, settings, write_json
from pathex.masks import replacing

if TYPE_CHECKING:
    import pandas as pd

FAILED = "failed.json"
_ALWAYS = ("method", "sparsity", "seed")
_MEASURED = ("test_accuracy", "test_miou", "kept", "total", "dead_layers", "prune_seconds", "train_seconds")


def record_failure(folder: Path, outcome: Mapping[str, Any], attempts: int) -> None:
    """Write ``failed.json``: ``error`` and ``traceback`` of the last attempt, and how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    known = {"error": outcome["error"], "traceback": outcome["traceback"], "attempts": attempts, "time": when}
    write_json(folder / FAILED, {"status": "failed", **known})


class Table:
    """``results.csv`` and, where pyarrow is installed, ``results.parquet``: one row for each run of a sweep."""

    def __init__(self, out: Path, runs: Mapping[str, RunConfig]) -> None:
        self.path = out / "results.csv"
        self.parquet = find_spec("pyarrow") is not None
        self._out, self._runs = out, runs
        self._settings = _columns(runs)
        self._finished: dict[str, dict[str, Any]] = {}

    def finished(self, name: str) -> bool:
        """Whether a run is done; no for what cannot be read or has other settings: carrying it out tells why."""
        if name not in self._finished:
            folder = self._out / name
            with suppress(PathexError):
                check_same(folder, self._runs[name])
                if (result := finished_result(folder)) is not None:
                    self._finished[name] = result
        return name in self._finished

    def write(self) -> None:
        """Write the files, each in one step."""
        import pandas as pd
        from filelock import FileLock

        rows = [self._row(name) for name in self._runs]
        frame = pd.DataFrame(rows).dropna(axis="columns", how="all").convert_dtypes()
        if "error" not in frame:
            frame["error"] = pd.Series([None] * len(frame), dtype="string")
        self._out.mkdir(parents=True, exist_ok=True)  # someone may have cleared it away meanwhile
        # Two sweeps may share the folder, and the temporary name has no room for two.
        with FileLock(self._out / ".results.lock"):
            with replacing(self.path) as temporary:
                frame.to_csv(temporary, index=False)
            if self.parquet:
                with replacing(self.path.with_suffix(".parquet")) as temporary:
                    frame.to_parquet(temporary, index=False)

    def _row(self, name: str) -> dict[str, Any]:
        result = self._finished[name] if self.finished(name) else {}
        error = None if result else _read_error(self._out / name / FAILED)
        status = "done" if result else "unfinished" if error is None else "failed"
        known = {"name": name, "status": status, **self._settings.loc[name]}
        return {**known, **{key: result.get(key) for key in _MEASURED}, "error": error}


def _read_error(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["error"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} cannot be read"


def _columns(runs: Mapping[str, RunConfig]) -> "pd.DataFrame":
    """The settings that are not the same in all runs, and a few that are always of interest; one type a column."""
    import pandas as pd

    flat = {run: _flat(config) for run, config in runs.items()}
    frame = pd.DataFrame.from_dict(flat, orient="index").astype(object)
    # As text, so that a setting that is null is told from one that plays no part in a run.
    dumped = {run: {name: json.dumps(value) for name, value in values.items()} for run, values in flat.items()}
    texts = pd.DataFrame.from_dict(dumped, orient="index")
    order = [field.name for field in dataclasses.fields(RunConfig)]
    kept = [
        name
        for name in sorted(frame, key=lambda name: order.index(name.partition(".")[0]))
        # An option that only some runs give is a difference; a setting that plays no part in some is none.
        if name in _ALWAYS or texts[name].nunique(dropna="." not in name) > 1
    ]
    for name in kept:
        if pd.api.types.infer_dtype(frame[name], skipna=True) in {"mixed", "mixed-integer"}:
            frame[name] = frame[name].map(str, na_action="ignore")
    return frame[kept]


def _flat(config: RunConfig) -> dict[str, Any]:
    """The settings that count for a run, options under dotted names, lists and mappings as text."""
    flat: dict[str, Any] = {}
    for name, value in settings(config).items():
        if name in WITHOUT_EFFECT.get(config.method, ()) and name not in _ALWAYS:
            continue
        options = name.endswith("_options")
        flat |= {f"{name}.{option}": each for option, each in value.items()} if options else {name: value}
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in flat.items()}

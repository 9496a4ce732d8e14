"""Where a sweep stands, from its messages."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pathex.experiments.sweep.work import ENDED

_LEAST_WORK = 0.05


@dataclass
class Stage:
    """Where one run stands."""

    text: str = "loading"
    loss: float | None = None
    done: float = 0.0
    begun: float = 0.0
    levels: int = 0

    def advance(self, kind: str, payload: dict[str, Any]) -> None:
        """Take an event of the run; unknown ones are passed over."""
        self.levels = payload.get("levels", self.levels)
        epoch = payload.get("epoch")
        if kind == "prune_round":
            self.text = f"prune {payload['round']}/{payload['rounds']}"
        elif kind == "resumed" and epoch is None and "level" in payload:  # a level that was over before
            self.text = _place(payload)
            self.done = self.begun = payload["level"] / (self.levels + 1)
        elif kind in {"resumed", "step", "epoch"} and epoch is not None:
            self.text = f"{_place(payload)}epoch {epoch}/{payload['epochs']}"
            whole = epoch - 1 + (payload["step"] / payload["steps"] if kind == "step" else 1.0)
            # The trainings of a run follow each other: those of the levels and its own, or one for each target.
            before = payload["level"] - 1 if "level" in payload else self.levels + payload.get("target", 1) - 1
            self.done = (before + whole / max(1, payload["epochs"])) / (payload.get("targets", 1) + self.levels)
            self.begun = self.done if kind == "resumed" else self.begun
            self.loss = payload.get("train_loss", self.loss)


class Progress:
    """Counts runs and follows those that are running; its instance receives the messages of a sweep."""

    def __init__(self, names: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.running: dict[str, Stage] = {}
        self.status = dict.fromkeys(names, "waiting")
        self._clock, self._start = clock, clock()
        self._worked = 0.0

    def __call__(self, name: str, kind: str, payload: dict[str, Any]) -> None:
        """Take a message; unknown kinds are passed over."""
        if kind in {ENDED, "busy", "again"}:
            self.status[name] = status = payload["status"] if kind == ENDED else "waiting"
            if (stage := self.running.pop(name, None)) is not None:
                self._worked += (1.0 if status == "done" else stage.done) - stage.begun
        elif kind == "start":
            self.status[name], self.running[name] = "running", Stage()
        elif name in self.running:
            self.running[name].advance(kind, payload)

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs that are done, running, failed and waiting."""
        counted = Counter(self.status.values())
        return {status: counted[status] for status in ("done", "running", "failed", "waiting")}

    def seconds_left(self) -> float | None:
        """How long the rest takes if runs go on as fast as so far; None while there is too little to tell from."""
        # Pruning counts as no work, and all runs as equally long.
        worked = self._worked + sum(stage.done - stage.begun for stage in self.running.values())
        if worked < _LEAST_WORK:
            return None
        left = self.counts["waiting"] + sum(1.0 - stage.done for stage in self.running.values())
        return left * (self._clock() - self._start) / worked


def _place(payload: dict[str, Any]) -> str:
    for part in ("level", "target"):
        if part in payload:
            return f"{part} {payload[part]}/{payload[part + 's']} "
    return ""

"""Where a sweep stands, from its messages."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pathex.sweep.work import ENDED

__all__ = ["Progress", "Stage"]

_LEAST_WORK = 0.05


@dataclass
class Stage:
    """Where one run stands.

    Attributes:
        text: Stage for people, such as ``epoch 3 of 160``.
        loss: Training loss of the last whole epoch, or None.
        done: Fraction of the training that is done.
        begun: That fraction when the sweep took the run up.
        levels: Trainings that find the mask, before the run's own.
    """

    text: str = "loading"
    loss: float | None = None
    done: float = 0.0
    begun: float = 0.0
    levels: int = 0


class Progress:
    """Counts runs and follows those that are running; its instance receives the messages of a sweep.

    Args:
        names: Names of all runs.
        clock: Seconds since some moment.
    """

    def __init__(self, names: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.running: dict[str, Stage] = {}
        self.status = dict.fromkeys(names, "waiting")
        self._clock, self._start = clock, clock()
        self._worked = 0.0

    def __call__(self, name: str, kind: str, payload: dict[str, Any]) -> None:
        """Take a message.

        Args:
            name: Name of the run.
            kind: Kind of the message; unknown ones are passed over.
            payload: What belongs to it.
        """
        if kind in {ENDED, "busy", "again"}:
            self._end(name, payload["status"] if kind == ENDED else "waiting")
            return
        if kind == "start":
            self.status[name], self.running[name] = "running", Stage()
        stage = self.running.get(name)
        if stage is not None:
            _advance(stage, kind, payload)

    def _end(self, name: str, status: str) -> None:
        stage = self.running.pop(name, None)
        if stage is not None:
            self._worked += (1.0 if status == "done" else stage.done) - stage.begun
        self.status[name] = status

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs that are done, running, failed and waiting."""
        found = Counter(self.status.values())
        return {status: found[status] for status in ("done", "running", "failed", "waiting")}

    def seconds_left(self) -> float | None:
        """How long the rest takes if runs go on as fast as so far; None while there is too little to tell from.

        Returns:
            An estimate, in which pruning counts as no work and all runs are equally long.
        """
        worked = self._worked + sum(stage.done - stage.begun for stage in self.running.values())
        if worked < _LEAST_WORK:
            return None
        left = self.counts["waiting"] + sum(1.0 - stage.done for stage in self.running.values())
        return left * (self._clock() - self._start) / worked


def _advance(stage: Stage, kind: str, payload: dict[str, Any]) -> None:
    stage.levels = payload.get("levels", stage.levels)
    if kind == "prune_round":
        stage.text = f"prune {payload['round']}/{payload['rounds']}"
    elif kind == "resumed" and "level" in payload and "epoch" not in payload:  # a level that was over before
        stage.text = _where(payload)
        stage.done = stage.begun = payload["level"] / (stage.levels + 1)
    elif kind in {"resumed", "step", "epoch"} and "epoch" in payload:
        part = payload["step"] / payload["steps"] if kind == "step" else 1.0
        stage.text = f"{_where(payload)}epoch {payload['epoch']}/{payload['epochs']}"
        trained = (payload["epoch"] - 1 + part) / max(1, payload["epochs"])
        # The trainings of a run follow each other: those of the levels and its own, or one for each target.
        stage.done = (_trainings_before(stage, payload) + trained) / (payload.get("targets", 1) + stage.levels)
        stage.begun = stage.done if kind == "resumed" else stage.begun
        stage.loss = payload.get("train_loss", stage.loss)


def _trainings_before(stage: Stage, payload: dict[str, Any]) -> int:
    if "level" in payload:
        return int(payload["level"]) - 1
    return stage.levels + int(payload.get("target", 1)) - 1


def _where(payload: dict[str, Any]) -> str:
    for part in ("level", "target"):
        if part in payload:
            return f"{part} {payload[part]}/{payload[part + 's']} "
    return ""

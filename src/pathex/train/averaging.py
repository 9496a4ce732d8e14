"""The average of a network's weights over its training, by torch's AveragedModel."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from pathex.errors import InvalidInput, check_name

OPTIONS: Mapping[str, Mapping[str, float]] = MappingProxyType({"ema": {"decay": 0.999}, "swa": {"start": 0.75}})
"""Averages, and their options: of ``ema`` the decay in a step, of ``swa`` the fraction of the training before it."""


class Average:
    """``ema``: moving average over the steps, BatchNorm statistics included; ``swa``: mean over the ends of epochs."""

    def __init__(self, model: nn.Module, kind: str, epochs: int, options: Mapping[str, float]) -> None:
        chosen = {**OPTIONS[kind], **options}
        self._model, self._moving = model, kind == "ema"
        self._start = 0 if self._moving else math.floor(chosen["start"] * epochs)
        average = get_ema_multi_avg_fn(chosen["decay"]) if self._moving else None
        self.network = AveragedModel(model, multi_avg_fn=average, use_buffers=self._moving)

    def end_step(self) -> None:
        """Called after every step of the optimizer."""
        if self._moving:
            self.network.update_parameters(self._model)

    def end_epoch(self, number: int) -> None:
        """Called after every epoch, with the number of those that are over."""
        if not self._moving and number > self._start:
            self.network.update_parameters(self._model)

    @contextmanager
    def installed(
        self, images: Iterable[Tensor] | None, runs: nn.Module, share: Callable[[], None], *, stay: bool
    ) -> Iterator[None]:
        """The network with its averaged weights for a while, or for good, if there is an average by now.

        The mean over epochs gets statistics of BatchNorm from ``images`` through ``runs``; ``share`` makes those of all
        processes the same.
        """
        if not self.network.n_averaged:
            yield
            return
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        # Through the state, so that an attached mask keeps its zeros.
        self._model.load_state_dict(self.network.module.state_dict())
        if not self._moving and images is not None:
            update_bn(images, runs)
        share()
        yield
        if not stay:
            self._model.load_state_dict(own)


def check_average(kind: str, options: Mapping[str, Any]) -> None:
    """Refuse options that an average does not have (`UnknownName`) or that are out of range (`InvalidInput`)."""
    check_name("average", kind, OPTIONS)
    for option, value in options.items():
        check_name(f"option of average {kind!r}", option, OPTIONS[kind])
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InvalidInput(f"{option} is {value!r}; allowed: a number in [0, 1)")
